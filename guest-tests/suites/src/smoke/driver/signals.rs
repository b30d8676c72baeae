//! Signals, stops and the freezer while a program waits.
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::PollFlags;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use svadev_guest::abi::{self, WaitArgs};
use svadev_guest::{Descriptor, Device};

use super::slow_file::SlowFile;
use super::{errno, write};
use crate::harness::peer::Peer;
use crate::harness::{Context, During, Test, Verdict, Work};
use crate::memory::PAGE;
use crate::{check, check_eq};

pub(super) const TESTS: &[Test] = &[
    Test::each("signal.wait_without_restart_gives_eintr", eintr).timeout_s(30),
    Test::each("signal.stop_and_continue_lose_nothing", stop).timeout_s(30),
    Test::each("signal.freezer_loses_nothing", freezer).timeout_s(30),
    Test::each("poll.hangs_up_when_the_address_space_dies", hang_up),
];

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_signal: i32) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// One WAIT, as the kernel answers it.
fn raw_wait(device: &Device, timeout_ns: i64) -> Result<i32, Errno> {
    let mut done = [0u64; 4];
    let mut args = WaitArgs {
        argsz: u32::try_from(size_of::<WaitArgs>()).expect("it is small"),
        completions: done.as_mut_ptr().expose_provenance() as u64,
        timeout_ns,
        capacity: 1,
        min: 1,
        ..Default::default()
    };
    // SAFETY: `args` is a live structure of `argsz` bytes, and `done` has room for one completion.
    unsafe { abi::wait(device.as_raw_fd(), &raw mut args) }
}

/// A program that waits for a page in WAIT, or in the library's wait, and whom its handler interrupts.
fn eintr(c: &Context) -> Verdict {
    for (flags, timeout_ns, interrupted) in [
        (SaFlags::empty(), -1, true),
        (SaFlags::empty(), i64::MAX, true),
        (SaFlags::SA_RESTART, i64::MAX, true),
        (SaFlags::SA_RESTART, -1, false),
    ] {
        let what = format!("WAIT for {timeout_ns} ns, handler with {flags:?}");
        c.step(&what);
        let mut file = SlowFile::mount()?;
        let mut waiter = Peer::start(|line| {
            let action = SigAction::new(SigHandler::Handler(count), flags, SigSet::empty());
            // SAFETY: the handler only counts, in an atomic.
            unsafe { sigaction(Signal::SIGUSR1, &action) }?;
            let device = c.bound()?;
            let memory = file.map()?;
            device.post(&[Descriptor::crc32c(memory.address(), PAGE)])?;
            line.send(0)?;
            let result = raw_wait(&device, timeout_ns);
            check_eq!(result, if interrupted { Err(Errno::EINTR) } else { Ok(1) }, "{what}");
            line.send(u64::from(SIGNALS.load(Ordering::Relaxed)))?;
            if interrupted {
                // The library goes on.
                let done = device.wait(1, 1, None)?;
                check!(done[0].is_success(), "the work: {}", done[0]);
            }
            Ok(())
        })?;
        waiter.line.recv()?;
        file.wait_for_read()?;
        wait_until_it_sleeps(c, &waiter)?;
        kill(waiter.pid(), Signal::SIGUSR1)?;
        if interrupted {
            check_eq!(waiter.line.recv()?, 1, "signals before {what} ended");
            wait_until_it_sleeps(c, &waiter)?;
            kill(waiter.pid(), Signal::SIGUSR1)?;
            file.let_go()?;
        } else {
            file.let_go()?;
            check_eq!(waiter.line.recv()?, 1, "signals before {what} ended");
        }
        waiter.join()?;
    }
    c.still_serves()
}

/// Until a process waits for something that a signal ends.
fn wait_until_it_sleeps(c: &Context, peer: &Peer) -> Verdict {
    let deadline = Instant::now() + c.limit(Duration::from_secs(5));
    let path = format!("/proc/{}/syscall", peer.pid());
    loop {
        // The number of the system call, or `running`.
        let text = std::fs::read_to_string(&path).during(&path)?;
        if text.starts_with(&format!("{} ", libc::SYS_ioctl)) {
            return Ok(());
        }
        check!(Instant::now() < deadline, "it does not sleep in ioctl(2): {text}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A program that waits through the library, until its page comes.
fn waiter(c: &Context, file: &SlowFile) -> Verdict<Peer> {
    let mut waiter = Peer::start(|line| {
        let device = c.bound()?;
        let memory = file.map()?;
        device.post(&[Descriptor::crc32c(memory.address(), PAGE)])?;
        line.send(0)?;
        let done = device.wait(1, 1, Some(Duration::from_secs(25)))?;
        check_eq!(done.len(), 1, "completions");
        check!(done[0].is_success(), "the work: {}", done[0]);
        Ok(())
    })?;
    waiter.line.recv()?;
    Ok(waiter)
}

/// SIGSTOP and SIGCONT, as job control sends them.
fn stop(c: &Context) -> Verdict {
    let mut file = SlowFile::mount()?;
    let waiter = waiter(c, &file)?;
    file.wait_for_read()?;
    wait_until_it_sleeps(c, &waiter)?;
    kill(waiter.pid(), Signal::SIGSTOP)?;
    let status = waitpid(waiter.pid(), Some(WaitPidFlag::WUNTRACED))?;
    check_eq!(status, WaitStatus::Stopped(waiter.pid(), Signal::SIGSTOP), "after SIGSTOP");
    kill(waiter.pid(), Signal::SIGCONT)?;
    wait_until_it_sleeps(c, &waiter)?;
    file.let_go()?;
    waiter.join()
}

/// The freezer of cgroup v2, as a container's pause does it.
fn freezer(c: &Context) -> Verdict {
    let group = Path::new("/sys/fs/cgroup").join(format!("svadev-{}", std::process::id()));
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), None::<&str>).during("cgroup2")?;
    }
    std::fs::create_dir(&group).during(group.display())?;
    let mut file = SlowFile::mount()?;
    let waiter = waiter(c, &file)?;
    file.wait_for_read()?;
    write(group.join("cgroup.procs"), &waiter.pid().to_string())?;
    write(group.join("cgroup.freeze"), "1")?;
    wait_frozen(c, &group, true)?;
    c.step("the work ends while its program is frozen");
    file.let_go()?;
    c.still_serves()?;
    write(group.join("cgroup.freeze"), "0")?;
    wait_frozen(c, &group, false)?;
    waiter.join()?;
    std::fs::remove_dir(&group).during(group.display())
}

fn wait_frozen(c: &Context, group: &Path, frozen: bool) -> Verdict {
    let deadline = Instant::now() + c.limit(Duration::from_secs(5));
    let wanted = format!("frozen {}", u32::from(frozen));
    loop {
        let events = std::fs::read_to_string(group.join("cgroup.events"))?;
        if events.lines().any(|line| line == wanted) {
            return Ok(());
        }
        check!(Instant::now() < deadline, "the group does not become {wanted}: {events}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Who polls a context whose owner dies idle hears of it.
fn hang_up(c: &Context) -> Verdict {
    let device = c.open()?;
    let mut owner = Peer::start(|line| {
        device.bind()?;
        line.send(0)?;
        line.recv()?;
        Ok(())
    })?;
    owner.line.recv()?;
    let nothing = device.poll(PollFlags::POLLIN, Some(Duration::ZERO))?;
    check!(!nothing.contains(PollFlags::POLLHUP), "a living owner, but {nothing:?}");
    let mut poller = Peer::start(|line| {
        line.send(0)?;
        let found = device.poll(PollFlags::POLLIN, Some(c.limit(Duration::from_secs(8))))?;
        check!(found.contains(PollFlags::POLLHUP), "the owner is dead, but poll says {found:?}");
        check_eq!(errno(device.post(&[Descriptor::nop()])), Some(Errno::ESRCH), "submit then");
        Ok(())
    })?;
    poller.line.recv()?;
    owner.line.send(0)?;
    owner.join()?;
    poller.join()?;
    device.unbind()?;
    c.still_serves()
}
