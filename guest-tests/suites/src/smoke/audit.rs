//! The auditor of the IOMMU (`svadev test --audit`): a kernel's mistake, planted, and the report of it.
#![allow(unsafe_code, reason = "pages are exchanged behind the kernel's back")]
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use svadev_guest::{Buffer, Descriptor, Device};

use crate::harness::{Context, During, Test, Verdict, Work, kernel_log};
use crate::memory::{HUGE, PAGE, check_bytes, small_pages};
use crate::{check, check_eq, fail, skip};

pub(super) const TESTS: &[Test] = &[
    Test::each("audit.plant_is_refused_unless_asked_for", plant_is_refused),
    Test::each("audit.missing_invalidation", missing_invalidation),
];

/// Set when the auditor runs.
const AUDIT: &str = "SVADEV_AUDIT";
/// Where the launcher's lines come in (`docs/design/0001-foundations.md`).
const CONTROL: &str = "/dev/ttyS1";
/// How long a report may take: the auditor's limit, and its way here.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// An invalidation of the kernel's own may drop what was cached before the mistake is made. Then there is none yet.
const ATTEMPTS: u32 = 20;

fn audited() -> bool {
    std::env::var_os(AUDIT).is_some()
}

/// Two neighbouring pages whose entries are in one table, with different contents.
struct Pair {
    memory: Buffer,
    /// Offset of the first.
    first: usize,
}

impl Pair {
    const FIRST: u8 = 0x11;
    const SECOND: u8 = 0x22;

    fn new() -> Verdict<Self> {
        let memory = small_pages(3 * 4096)?;
        let next_to_boundary = memory.at(4096).is_multiple_of(HUGE as u64);
        let first = if next_to_boundary { 4096 } else { 0 };
        memory.fill(0);
        memory.write(first, &[Self::FIRST; 4096]);
        memory.write(first + 4096, &[Self::SECOND; 4096]);
        Ok(Self { memory, first })
    }

    fn address(&self) -> u64 {
        self.memory.at(self.first)
    }

    /// Exchanges them, or puts them back.
    fn swap(&self, device: &Device) -> svadev_guest::Result<()> {
        // SAFETY: both pages are the buffer's, to which no reference exists; what is in them is this test's alone.
        unsafe { device.plant_swap(self.address()) }
    }

    /// The byte that the device finds all over the first page.
    fn device_sees(&self, device: &Device) -> Verdict<u8> {
        let done = device.go(&Descriptor::crc32c(self.address(), PAGE))?;
        let crc = done.crc32c();
        let seen = [Self::FIRST, Self::SECOND].into_iter().find(|&byte| crc == Some(crc32c::crc32c(&[byte; 4096])));
        let Some(byte) = seen else { fail!("the device sees neither page: {done}") };
        Ok(byte)
    }
}

fn plant_is_refused(c: &Context) -> Verdict {
    if audited() {
        skip!("the module was loaded with plant=1, since the auditor is on");
    }
    let device = c.bound()?;
    let pair = Pair::new()?;
    let Err(error) = pair.swap(&device) else { fail!("the module plants mistakes without having been asked to") };
    check_eq!(error.errno(), Some(Errno::ENOTTY), "plant_swap without plant=1");
    check_bytes(&pair.memory.bytes(pair.first, 4096), &[Pair::FIRST; 4096], "the page")
}

fn missing_invalidation(c: &Context) -> Verdict {
    if !audited() {
        skip!("the auditor is off: svadev test --audit");
    }
    let device = c.bound()?;
    let Some(pasid) = device.query()?.pasid else { fail!("bound, and no PASID") };
    let pair = Pair::new()?;
    let mut reports = Reports::from_now()?;
    c.step("planting the mistake");
    plant(&device, &pair)?;
    let report = format!("missing-invalidation {pasid} {:#x}", pair.address());
    kernel_log::say(&format!("svadev-audit: expects {report}"))?;
    c.step("waiting for the report, while the device goes on with what it knows");
    let deadline = Instant::now() + c.limit(REPORT_TIMEOUT);
    while !reports.came(&format!("svadev:audit {report}"), Duration::from_millis(5))? {
        check!(Instant::now() < deadline, "no report of {report} within {REPORT_TIMEOUT:?}");
        check_eq!(pair.device_sees(&device)?, Pair::FIRST, "what the device sees before the report");
    }
    c.step("putting the pages back");
    pair.swap(&device)?;
    check_eq!(pair.device_sees(&device)?, Pair::FIRST, "what the device sees once the tables are right again");
    check_bytes(&pair.memory.bytes(pair.first, 4096), &[Pair::FIRST; 4096], "what the CPU sees")
}

/// Makes the mistake: afterwards the CPU sees the second page, and the device still the first.
fn plant(device: &Device, pair: &Pair) -> Verdict {
    for _ in 0..ATTEMPTS {
        check_eq!(pair.device_sees(device)?, Pair::FIRST, "what the device sees before the mistake");
        pair.swap(device)?;
        check_bytes(&pair.memory.bytes(pair.first, 4096), &[Pair::SECOND; 4096], "what the CPU sees")?;
        if pair.device_sees(device)? == Pair::FIRST {
            return Ok(());
        }
        pair.swap(device)?;
    }
    fail!("the device has forgotten the translation each of {ATTEMPTS} times");
}

/// The launcher's lines.
struct Reports {
    port: File,
    text: Vec<u8>,
}

impl Reports {
    fn from_now() -> Verdict<Self> {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        let port = OpenOptions::new().read(true).custom_flags(flags).open(CONTROL).during(CONTROL)?;
        Ok(Self { port, text: Vec::new() })
    }

    /// Whether a line has come, after at most `wait`.
    fn came(&mut self, line: &str, wait: Duration) -> Verdict<bool> {
        let mut fds = [PollFd::new(self.port.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO)).during("poll the control port")?;
        let mut chunk = [0; 512];
        match self.port.read(&mut chunk) {
            Ok(count) => self.text.extend_from_slice(&chunk[..count]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e).during("read the control port"),
        }
        Ok(String::from_utf8_lossy(&self.text).lines().any(|l| l == line))
    }
}
