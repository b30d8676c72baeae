//! What a test gets: its functions, its seed, and shorthands for the device.
#![allow(unsafe_code, reason = "submits work; see `Work`")]
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use svadev_guest::{Completion, Descriptor, Device, SubmitFlags};

use super::report::Report;
use super::rng::Rng;
use super::verdict::{During, Verdict};

/// What a test gets.
pub struct Context {
    /// Name of the run.
    pub name: String,
    /// Device nodes of all functions.
    pub functions: Vec<PathBuf>,
    /// The function under test, an index into `functions`.
    pub function: usize,
    /// Seed of the run.
    pub seed: u64,
    /// What to multiply time limits by.
    pub scale: f64,
    /// Where the test says how far it got.
    pub report: &'static Report,
}

impl Context {
    /// Say what the test does next; a hang, a crash or a failed helper is reported with it.
    pub fn step(&self, text: impl Display) {
        self.report.step(&text.to_string());
    }

    /// The node of the function under test.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.functions[self.function]
    }

    /// Open the function under test.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(&self) -> Verdict<Device> {
        Device::open(self.path()).during(self.path().display())
    }

    /// Open the function under test and bind this process.
    ///
    /// # Errors
    /// Either fails.
    pub fn bound(&self) -> Verdict<Device> {
        self.bound_on(self.function)
    }

    /// Open a function and bind this process.
    ///
    /// # Errors
    /// Either fails.
    pub fn bound_on(&self, function: usize) -> Verdict<Device> {
        let path = &self.functions[function];
        let device = Device::open(path).during(path.display())?;
        device.bind().during(path.display())?;
        Ok(device)
    }

    /// Numbers of this run.
    #[must_use]
    pub fn rng(&self) -> Rng {
        Rng::new(self.seed, &self.name)
    }

    /// A time limit on this machine.
    #[must_use]
    pub fn limit(&self, limit: Duration) -> Duration {
        limit.mul_f64(self.scale)
    }

    /// Check that the function serves a new context from end to end, whatever happened to others.
    ///
    /// # Errors
    /// It does not.
    pub fn still_serves(&self) -> Verdict {
        self.step(format!("checking that {} still serves", self.path().display()));
        serves(self.path(), &mut self.rng()).during("afterwards")
    }
}

/// Bind, copy into memory that was never touched, compare, unbind.
///
/// # Errors
/// Any of it fails.
pub(super) fn serves(path: &Path, rng: &mut Rng) -> Verdict {
    let device = Device::open(path).during(path.display())?;
    device.bind()?;
    let (src, dst) = (svadev_guest::Buffer::anonymous(4096)?, svadev_guest::Buffer::anonymous(4096)?);
    let data = rng.bytes(4096);
    src.write(0, &data);
    let done = device.go(&Descriptor::copy(src.address(), dst.address(), 4096))?;
    crate::check!(done.is_success(), "a copy of 4096 bytes on {}: {done}", path.display());
    crate::check!(dst.bytes(0, 4096) == data, "a copy of 4096 bytes on {} brought other bytes", path.display());
    device.unbind()?;
    Ok(())
}

/// Submitting work, for tests.
///
/// Safe to call by a rule that every test keeps: what a descriptor names is memory of a [`Buffer`](svadev_guest::Buffer), to
/// which no reference exists, or memory that this process has not mapped, or memory of another process that keeps the
/// rule too. That is what the bindings' unsafe calls ask for.
pub trait Work {
    /// Submit one descriptor and wait for its completion.
    ///
    /// # Errors
    /// The driver refuses, or there is no completion.
    fn go(&self, descriptor: &Descriptor) -> Verdict<Completion>;

    /// As [`go`](Self::go), with the descriptor's own PASID.
    ///
    /// # Errors
    /// As [`go`](Self::go).
    fn go_raw(&self, descriptor: &Descriptor) -> Verdict<Completion>;

    /// Submit and do not wait.
    ///
    /// # Errors
    /// The driver's own, for tests that look at them.
    fn post(&self, descriptors: &[Descriptor]) -> svadev_guest::Result<usize>;

    /// Submit all, in as many calls as it takes, and do not wait for completions.
    ///
    /// # Errors
    /// The driver's own, for tests that look at them.
    fn post_all(&self, descriptors: &[Descriptor]) -> svadev_guest::Result<()>;

    /// Submit without waiting, with flags.
    ///
    /// # Errors
    /// The driver's own, for tests that look at them.
    fn post_with(&self, descriptors: &[Descriptor], flags: SubmitFlags) -> svadev_guest::Result<usize>;

    /// Collect exactly `count` completions, or fail.
    ///
    /// # Errors
    /// They do not come, or the driver refuses.
    fn collect(&self, count: usize, timeout: Duration) -> Verdict<Vec<Completion>>;
}

impl Work for Device {
    fn go(&self, descriptor: &Descriptor) -> Verdict<Completion> {
        // SAFETY: the rule that `Work` states.
        Ok(unsafe { self.run(descriptor) }?)
    }

    fn go_raw(&self, descriptor: &Descriptor) -> Verdict<Completion> {
        // SAFETY: the rule that `Work` states.
        Ok(unsafe { self.run_with(descriptor, SubmitFlags::RAW) }?)
    }

    fn post(&self, descriptors: &[Descriptor]) -> svadev_guest::Result<usize> {
        // SAFETY: the rule that `Work` states.
        unsafe { self.submit(descriptors) }
    }

    fn post_all(&self, descriptors: &[Descriptor]) -> svadev_guest::Result<()> {
        // SAFETY: the rule that `Work` states.
        unsafe { self.submit_all(descriptors) }
    }

    fn post_with(&self, descriptors: &[Descriptor], flags: SubmitFlags) -> svadev_guest::Result<usize> {
        // SAFETY: the rule that `Work` states.
        unsafe { self.submit_with(descriptors, flags) }
    }

    fn collect(&self, count: usize, timeout: Duration) -> Verdict<Vec<Completion>> {
        let deadline = std::time::Instant::now() + timeout;
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let more = self.wait(count - all.len(), count - all.len(), Some(left))?;
            crate::check!(
                !more.is_empty(),
                "expected {count} completions within {timeout:?}, actual {}: {:?}",
                all.len(),
                self.query()
            );
            all.extend(more);
        }
        Ok(all)
    }
}
