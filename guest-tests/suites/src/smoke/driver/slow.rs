//! A page that never comes: the kernel cannot answer the device's page request. Until it does, nobody may unbind.
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use svadev_guest::{Code, Descriptor};

use super::slow_file::SlowFile;
use super::{class_file, errno, wait_for_class_file};
use crate::harness::peer::Peer;
use crate::harness::{Context, Expected, Test, Verdict, Work};
use crate::memory::{PAGE, small_pages};
use crate::{check, check_eq};

pub(super) const TESTS: &[Test] = &[
    Test::each("driver.L7.unbind_waits_for_a_page_that_does_not_come", unbind).timeout_s(60),
    Test::each("driver.L7.kill_with_a_page_that_does_not_come", kill_owner).timeout_s(60).allows(Expected::DmarFault),
];

/// Longer than the device's limit for a page request and the driver's margin together.
const LIMIT: Duration = Duration::from_secs(30);
/// What work of somebody else may take meanwhile: far less than the limit.
const OTHERS: Duration = Duration::from_secs(4);

/// Others bind and work at once. They do not unbind before the page has come: Linux 7.3 waits then for the page
/// requests of everybody behind the unit (`docs/found.md`).
fn others_work(c: &Context) -> Verdict<Vec<Peer>> {
    let begin = Instant::now();
    let mut others = Vec::new();
    for _ in 0..3 {
        let mut other = Peer::start(|line| {
            let device = c.bound()?;
            let memory = small_pages(4096)?;
            check!(device.go(&Descriptor::fill(memory.address(), PAGE, 1))?.is_success(), "another's fill");
            line.send(0)?;
            line.wait_long(c.limit(LIMIT)).map(drop)
        })?;
        other.line.recv()?;
        others.push(other);
    }
    check!(begin.elapsed() < c.limit(OTHERS), "other programs waited for {:?}", begin.elapsed());
    Ok(others)
}

/// The program is told that its page request is unanswered, can try again, and nobody else waits for that.
fn unbind(c: &Context) -> Verdict {
    let mut file = SlowFile::mount()?;
    let mut owner = Peer::start(|line| {
        let device = c.bound()?;
        let memory = file.map()?;
        device.post(&[Descriptor::crc32c(memory.address(), PAGE)])?;
        line.send(0)?;
        line.recv()?;
        check_eq!(errno(device.unbind()), Some(Errno::EBUSY), "unbind while a page request is unanswered");
        check_eq!(errno(device.post(&[Descriptor::nop()])), Some(Errno::EINVAL), "submit after that");
        check_eq!(errno(device.bind()), Some(Errno::EBUSY), "bind after that");
        check!(device.query()?.pasid.is_some(), "the context is no longer bound");
        line.send(0)?;
        line.recv()?;
        device.unbind()?;
        let code = device.collect(1, Duration::ZERO)?[0].code;
        check!(matches!(code, Code::Aborted | Code::PageRequestTimeout), "the work ended as {code:?}");
        device.bind()?;
        check!(device.go(&Descriptor::nop())?.is_success(), "a NOP of the new binding failed");
        Ok(())
    })?;
    owner.line.recv()?;
    file.wait_for_read()?;
    c.step("unbinding while the page does not come");
    owner.line.send(0)?;
    let others = others_work(c)?;
    owner.line.wait_long(c.limit(LIMIT))?;
    c.step("the page comes, and unbind is tried again");
    file.let_go()?;
    owner.line.send(0)?;
    owner.join()?;
    for mut other in others {
        other.line.send(0)?;
        other.join()?;
    }
    c.still_serves()
}

/// The process goes at once. Its binding stays until the page has come, and nobody else notices.
fn kill_owner(c: &Context) -> Verdict {
    let mut file = SlowFile::mount()?;
    check_eq!(class_file(c, "stats/orphans")?, "0", "orphans before");
    let mut owner = Peer::start(|line| {
        let device = c.bound()?;
        let memory = file.map()?;
        device.post(&[Descriptor::crc32c(memory.address(), PAGE)])?;
        line.send(0)?;
        line.recv()?;
        Ok(())
    })?;
    owner.line.recv()?;
    file.wait_for_read()?;
    c.step("killing the owner while the page does not come");
    kill(owner.pid(), Signal::SIGKILL)?;
    let mut others = others_work(c)?;
    wait_for_class_file(c, "stats/orphans", "1", LIMIT)?;
    others.extend(others_work(c)?);
    c.step("the page comes, and the binding goes");
    file.let_go()?;
    wait_for_class_file(c, "stats/orphans", "0", LIMIT)?;
    owner.kill()?;
    for mut other in others {
        other.line.send(0)?;
        other.join()?;
    }
    c.still_serves()
}
