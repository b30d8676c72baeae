//! The function goes away, or out of service, while programs use it: driver unbind, remove and rescan, the module,
//! resets.
use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use nix::poll::PollFlags;
use nix::sys::signal::{Signal, kill};
use svadev_guest::{Buffer, Code, Descriptor, Device, UserQueue, UserQueueOptions};

use super::{check_gone, class_file, errno, pci_folder, wait_for_class_file, wait_for_path, write};
use crate::harness::peer::Peer;
use crate::harness::{Context, During, Expected, Test, Verdict, Work};
use crate::memory::{PAGE, small_pages};
use crate::{check, check_eq, skip};

pub(super) const TESTS: &[Test] = &[
    Test::each("driver.unbind_under_use", unbind_driver).timeout_s(60).allows(Expected::DmarFault),
    Test::each("driver.remove_and_rescan_under_use", remove).timeout_s(60).allows(Expected::DmarFault),
    Test::pair("driver.module_stays_while_files_are_open", module).timeout_s(60),
    Test::each("driver.out_of_service_until_a_reset_succeeds", out_of_service).timeout_s(60),
    Test::each("reset.against_bind", against_bind).timeout_s(60),
    Test::each("reset.against_wait_and_kill", against_kill).timeout_s(60).allows(Expected::DmarFault),
    Test::each("lifetime.L3.two_contexts_with_work_in_flight", two_contexts),
    Test::each("lifetime.L8.memory_stays_as_unbind_left_it", canary).timeout_s(30),
];

/// Where init has the module from.
const MODULE: &str = "/svadev/svadev.ko";

/// Programs that use the function in every way, until it is gone.
fn users(c: &Context) -> Verdict<Vec<Peer>> {
    let mut users = Vec::new();
    for n in 0..3 {
        let mut user = Peer::start(move |line| {
            let device = c.bound()?;
            let memory = small_pages(64 * 4096)?;
            let mut queue = match n {
                0 => Some(UserQueue::create(&device, UserQueueOptions { interrupts: true, ..Default::default() })?),
                _ => None,
            };
            device.post_all(&vec![Descriptor::fill(memory.address(), memory.len() as u64, 1); 4])?;
            if let Some(queue) = &mut queue {
                // SAFETY: nobody else uses the memory.
                unsafe { queue.submit(&[Descriptor::fill(memory.address(), PAGE, 1)]) };
            }
            line.send(0)?;
            loop {
                match device.wait(1, 64, None) {
                    Ok(done) => {
                        let expected = |code| matches!(code, Code::Success | Code::Aborted);
                        check!(done.iter().all(|d| expected(d.code)), "work of a function that goes: {done:?}");
                    }
                    Err(error) => {
                        check_eq!(error.errno(), Some(Errno::ENODEV), "the last wait");
                        break;
                    }
                }
                match n {
                    1 => drop(device.post(&[Descriptor::fill(memory.address(), memory.len() as u64, 1)])),
                    _ => {
                        device.poll(PollFlags::POLLIN | PollFlags::POLLOUT, Some(Duration::from_millis(1)))?;
                    }
                }
            }
            let found = device.poll(PollFlags::POLLIN, Some(Duration::ZERO))?;
            check!(found.contains(PollFlags::POLLERR | PollFlags::POLLHUP), "poll of a device that is gone: {found:?}");
            check_gone(&device)?;
            line.send(0)?;
            line.recv()?;
            Ok(())
        })?;
        user.line.recv()?;
        users.push(user);
    }
    Ok(users)
}

/// Brings the function back, whatever became of the test.
struct Restore {
    /// The file to write, and what: its driver's `bind` or the bus's `rescan`.
    write: (&'static str, String),
    node: PathBuf,
}

impl Drop for Restore {
    fn drop(&mut self) {
        if !self.node.exists() {
            let _ = std::fs::write(self.write.0, &self.write.1);
        }
    }
}

/// The driver is taken off the function and put on again.
fn unbind_driver(c: &Context) -> Verdict {
    let folder = pci_folder(&c.open()?)?;
    let address = Path::new(&folder).file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let bind = "/sys/bus/pci/drivers/svadev/bind";
    let _restore = Restore { write: (bind, address.clone()), node: c.path().to_owned() };
    for round in 0..3 {
        let mut users = users(c)?;
        c.step(format!("unbinding the driver, round {round}"));
        write("/sys/bus/pci/drivers/svadev/unbind", &address)?;
        users.iter_mut().try_for_each(|user| user.line.recv().map(drop))?;
        check!(!c.path().exists(), "{} is still there", c.path().display());
        write(bind, &address)?;
        wait_for_path(c, c.path(), true)?;
        // With the old files open, and after that.
        c.still_serves()?;
        for mut user in users {
            user.line.send(0)?;
            user.join()?;
        }
        c.still_serves()?;
    }
    Ok(())
}

/// The function is unplugged and found again.
fn remove(c: &Context) -> Verdict {
    let folder = pci_folder(&c.open()?)?;
    let _restore = Restore { write: ("/sys/bus/pci/rescan", "1".to_owned()), node: c.path().to_owned() };
    let mut users = users(c)?;
    c.step("removing the function");
    write(format!("{folder}/remove"), "1")?;
    users.iter_mut().try_for_each(|user| user.line.recv().map(drop))?;
    check!(!Path::new(&folder).exists() && !c.path().exists(), "it is still there");
    write("/sys/bus/pci/rescan", "1")?;
    wait_for_path(c, c.path(), true)?;
    for mut user in users {
        user.line.send(0)?;
        user.join()?;
    }
    c.still_serves()
}

/// rmmod is refused while a file is open. Afterwards the module goes and comes.
fn module(c: &Context) -> Verdict {
    if !Path::new(MODULE).exists() {
        skip!("there is no {MODULE}");
    }
    let name = CString::new("svadev").expect("no zero byte");
    let parameters: Vec<String> = ["plant", "raw"]
        .iter()
        .filter_map(|name| {
            let value = std::fs::read_to_string(format!("/sys/module/svadev/parameters/{name}")).ok()?;
            Some(format!("{name}={}", value.trim()))
        })
        .collect();
    let remove = || delete_module(&name, DeleteModuleFlags::O_NONBLOCK);
    let device = c.bound()?;
    check_eq!(remove(), Err(Errno::EAGAIN), "rmmod with a bound context");
    device.unbind()?;
    check_eq!(remove(), Err(Errno::EAGAIN), "rmmod with an open file");
    drop(device);
    c.step("unloading and loading the module");
    remove().during("rmmod")?;
    c.functions.iter().try_for_each(|path: &PathBuf| wait_for_path(c, path, false))?;
    let parameters = CString::new(parameters.join(" ")).expect("no zero byte");
    finit_module(&File::open(MODULE)?, &parameters, ModuleInitFlags::empty()).during("insmod")?;
    c.functions.iter().try_for_each(|path: &PathBuf| wait_for_path(c, path, true))?;
    c.still_serves()
}

/// A function whose memory decoding is off answers nothing: neither a reset nor a restart brings it back.
fn out_of_service(c: &Context) -> Verdict {
    const COMMAND: u64 = 4;
    const MEMORY: u16 = 2;
    let device = c.bound()?;
    let folder = pci_folder(&device)?;
    let set = |on: bool| -> Verdict {
        use std::os::unix::fs::FileExt;
        let config = File::options().read(true).write(true).open(format!("{folder}/config"))?;
        let mut command = [0; 2];
        config.read_exact_at(&mut command, COMMAND)?;
        let command = u16::from_le_bytes(command);
        let command = if on { command | MEMORY } else { command & !MEMORY };
        Ok(config.write_all_at(&command.to_le_bytes(), COMMAND)?)
    };
    check_eq!(class_file(c, "state")?, "running", "state before");
    let mut leaver = Peer::start(|line| {
        let _device = c.bound()?;
        line.send(0)?;
        line.recv()?;
        Ok(())
    })?;
    leaver.line.recv()?;
    c.step("resetting a function that does not answer");
    set(false)?;
    let _says_what_the_kernel_thinks = std::fs::write(format!("{folder}/reset"), "1");
    wait_for_class_file(c, "state", "failed", Duration::from_secs(20))?;
    check_eq!(errno(device.post(&[Descriptor::nop()])), Some(Errno::EIO), "submit out of service");
    let other = c.open()?;
    check_eq!(errno(other.bind()), Some(Errno::EIO), "bind out of service");
    let found = device.poll(PollFlags::POLLIN, Some(c.limit(Duration::from_secs(5))))?;
    check!(found.contains(PollFlags::POLLERR), "poll out of service: {found:?}");
    check_eq!(errno(device.unbind()), Some(Errno::EIO), "unbind out of service");
    check!(device.query()?.pasid.is_some(), "it is bound no more, without a proof that the device is done");
    c.step("a program goes; its binding waits for the function");
    leaver.line.send(0)?;
    leaver.join()?;
    wait_for_class_file(c, "stats/orphans", "1", Duration::from_secs(5))?;
    c.step("bringing it back");
    set(true)?;
    write(format!("{folder}/reset"), "1")?;
    wait_for_class_file(c, "state", "running", Duration::from_secs(20))?;
    wait_for_class_file(c, "stats/orphans", "0", Duration::from_secs(10))?;
    device.unbind()?;
    device.bind()?;
    check!(device.go(&Descriptor::nop())?.is_success(), "a NOP after it came back");
    c.still_serves()
}

/// Binds and unbinds while resets come: each works, or waits.
fn against_bind(c: &Context) -> Verdict {
    let folder = pci_folder(&c.open()?)?;
    let mut binders = Vec::new();
    for nonblocking in [false, false, true] {
        binders.push(Peer::start(move |line| {
            let device = if nonblocking { Device::open_nonblocking(c.path())? } else { c.open()? };
            line.send(0)?;
            let deadline = Instant::now() + Duration::from_secs(3);
            while Instant::now() < deadline {
                match device.bind() {
                    Ok(_) => device.unbind().during("unbind beside a reset")?,
                    Err(error) if nonblocking && error.errno() == Some(Errno::EAGAIN) => {}
                    Err(error) => return Err(error).during("bind beside a reset"),
                }
            }
            Ok(())
        })?);
    }
    binders.iter_mut().try_for_each(|binder| binder.line.recv().map(drop))?;
    let begin = Instant::now();
    let mut resets = 0;
    while begin.elapsed() < Duration::from_millis(2500) {
        write(format!("{folder}/reset"), "1")?;
        resets += 1;
    }
    c.step(format!("{resets} resets are done"));
    binders.into_iter().try_for_each(Peer::join)?;
    c.still_serves()
}

/// Programs wait and are killed while resets come.
fn against_kill(c: &Context) -> Verdict {
    let folder = pci_folder(&c.open()?)?;
    for _ in 0..5 {
        let mut victims = Vec::new();
        for _ in 0..3 {
            let mut victim = Peer::start(|line| {
                let device = c.bound()?;
                let memory = small_pages(256 * 4096)?;
                device.post_all(&vec![Descriptor::fill(memory.address(), memory.len() as u64, 1); 8])?;
                line.send(0)?;
                loop {
                    let done = device.wait(1, 8, Some(Duration::from_secs(5)))?;
                    if done.is_empty() {
                        line.recv()?;
                    }
                }
            })?;
            victim.line.recv()?;
            victims.push(victim);
        }
        kill(victims[0].pid(), Signal::SIGKILL)?;
        write(format!("{folder}/reset"), "1")?;
        kill(victims[1].pid(), Signal::SIGKILL)?;
        write(format!("{folder}/reset"), "1")?;
        victims.into_iter().try_for_each(Peer::kill)?;
    }
    c.still_serves()
}

/// Two contexts of one program share a PASID. One that goes loses its own work only.
fn two_contexts(c: &Context) -> Verdict {
    for first_closes in [true, false] {
        for with_queue in [false, true] {
            let (first, second) = (c.bound()?, c.bound()?);
            check_eq!(first.query()?.pasid, second.query()?.pasid, "PASID of the second context");
            let (one, two) = (small_pages(128 * 4096)?, small_pages(128 * 4096)?);
            let fill = |memory: &Buffer, value| vec![Descriptor::fill(memory.address(), memory.len() as u64, value); 3];
            let (goes, stays) = if first_closes { (first, second) } else { (second, first) };
            let queue = match with_queue {
                true => Some(UserQueue::create(&stays, UserQueueOptions::POLLED)?),
                false => None,
            };
            goes.post_all(&fill(&one, 1))?;
            stays.post_all(&fill(&two, 2))?;
            drop(goes);
            let done = stays.collect(3, c.limit(Duration::from_secs(10)))?;
            check!(done.iter().all(|d| d.is_success()), "work of the context that stays: {done:?}");
            check_eq!(two.bytes(two.len() - 8, 8), 2u64.to_le_bytes(), "the last bytes");
            drop(queue);
            stays.unbind()?;
        }
    }
    c.still_serves()
}

/// What unbind left is left alone: a second later, and when another process has the same pages.
fn canary(c: &Context) -> Verdict {
    const PAGES: usize = 256;
    let device = c.bound()?;
    let memory = small_pages(PAGES * 4096)?;
    device.post_all(&vec![Descriptor::fill(memory.address(), memory.len() as u64, u64::MAX); 8])?;
    device.unbind()?;
    memory.fill(0x11);
    std::thread::sleep(Duration::from_secs(1));
    let untouched = |memory: &Buffer, what: &str| -> Verdict {
        check!(memory.bytes(0, memory.len()).iter().all(|&byte| byte == 0x11), "{what} was written after unbind");
        Ok(())
    };
    untouched(&memory, "memory of the program")?;
    drop(memory);
    let next = Peer::start(|_| {
        // The kernel gives out first what was freed last.
        let memory = small_pages(PAGES * 4096)?;
        memory.fill(0x11);
        std::thread::sleep(Duration::from_secs(1));
        untouched(&memory, "memory of another process")
    })?;
    next.join()?;
    check_eq!(errno(device.post(&[Descriptor::nop()])), Some(Errno::EINVAL), "submit after unbind");
    c.still_serves()
}
