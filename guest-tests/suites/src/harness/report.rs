//! The page that a test's process and the runner share: where the test is, and what it found.
//!
//! It outlives the test's process, so a crash or a hang still says how far the test got.
#![allow(unsafe_code, reason = "a page shared between processes")]
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use super::ktap::Outcome;
use super::verdict::{Stop, Verdict};

const NONE: u32 = 0;
const PASSED: u32 = 1;
const FAILED: u32 = 2;
const SKIPPED: u32 = 3;

/// Text of bounded length in shared memory. Bytes are atomic, so a reader of a half-written text sees some text.
#[repr(C)]
struct Text<const N: usize> {
    bytes: [AtomicU8; N],
    length: AtomicU32,
}

impl<const N: usize> Text<N> {
    fn set(&self, text: &str) {
        self.length.store(0, Ordering::Release);
        let length = text.len().min(N);
        for (to, from) in self.bytes.iter().zip(text.as_bytes()) {
            to.store(*from, Ordering::Relaxed);
        }
        self.length.store(u32::try_from(length).unwrap_or(0), Ordering::Release);
    }

    fn get(&self) -> String {
        let length = usize::try_from(self.length.load(Ordering::Acquire)).unwrap_or(0).min(N);
        let bytes: Vec<u8> = self.bytes[..length].iter().map(|b| b.load(Ordering::Relaxed)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The shared page. All-zero is its empty state.
#[repr(C)]
pub struct Report {
    kind: AtomicU32,
    step: Text<512>,
    reason: Text<4096>,
}

impl Report {
    /// A new one, shared with every process forked from now on. It is never unmapped: there is one a test.
    ///
    /// # Panics
    /// There is no memory for two pages.
    #[must_use]
    pub fn shared() -> &'static Self {
        let size = NonZeroUsize::new(size_of::<Self>()).expect("a report is not empty");
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let map =
            unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED) };
        let map = map.expect("memory for a report");
        // SAFETY: the mapping is page-aligned, large enough, zeroed, which is a valid `Report` (atomics only), never
        // unmapped, and only reached through atomics, in every process that shares it.
        unsafe { map.cast::<Self>().as_ref() }
    }

    /// Say what the test does next; a hang or a crash is reported with it.
    pub fn step(&self, text: &str) {
        self.step.set(text);
    }

    /// The last step, if any.
    #[must_use]
    pub fn last_step(&self) -> Option<String> {
        Some(self.step.get()).filter(|s| !s.is_empty())
    }

    /// Store what the test found.
    pub fn store(&self, verdict: &Verdict) {
        let kind = match verdict {
            Ok(()) => PASSED,
            Err(Stop::Fail(why)) => {
                self.reason.set(why);
                FAILED
            }
            Err(Stop::Skip(why)) => {
                self.reason.set(why);
                SKIPPED
            }
        };
        self.kind.store(kind, Ordering::Release);
    }

    /// What the test found, if it came so far.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        match self.kind.load(Ordering::Acquire) {
            NONE => None,
            PASSED => Some(Outcome::Passed),
            SKIPPED => Some(Outcome::Skipped(self.reason.get())),
            _ => Some(Outcome::Failed(self.reason.get())),
        }
    }
}
