//! PID 1 of the test guest: sets the guest up, runs one job, reports on serial lines, powers off.
//!
//! What the launcher and this program say to each other is written down in `docs/design/0001-foundations.md`, "The guest's
//! channels". Every way out of this program ends in `svadev:exit` or `svadev:fatal`, and then in a power-off: a launcher
//! that hears neither knows that the kernel itself is gone.

mod control;
mod frames;
mod job;
mod kmsg;
mod module;
mod mounts;
mod process;
mod relay;
mod serial;
mod session;

use std::process::exit;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{Pid, getpid, sync};

use control::Control;
use job::{Job, Mode};
use session::Input;

/// Where the launcher puts the job.
const JOB: &str = "/svadev/job.json";
/// How often the launcher hears that PID 1 is alive.
const ALIVE_PERIOD: Duration = Duration::from_secs(2);
/// Status of `svadev-init` when it is not PID 1: a usage error, as everywhere in svadev.
const EXIT_USAGE: i32 = 2;

#[allow(clippy::print_stderr, reason = "not PID 1: a person typed the name, and stderr is all there is")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, argv)) if first == session::SESSION => exit(session::lead(argv, Input::Terminal).into()),
        Some((first, argv)) if first == session::SESSION_WITH_FRAMES => {
            exit(session::lead(argv, Input::Frames).into());
        }
        _ => {}
    }
    if getpid() != Pid::from_raw(1) {
        // On anything but a guest of its own, what follows would mount, kill and power off.
        eprintln!("svadev-init is PID 1 of svadev's test guest; it does nothing elsewhere");
        exit(EXIT_USAGE);
    }
    let devices = mounts::devices();
    let control = Arc::new(Control::open());
    report_panics(&control);
    match devices.and_then(|()| serve(&control)) {
        Ok(status) => control.exit(status),
        Err(e) => control.fatal(&format!("{e:#}")),
    }
    power_off();
}

/// Set up, run the job, return its status.
fn serve(control: &Arc<Control>) -> Result<u8> {
    control.hello(&kernel_release());
    start_alive(control)?;
    mounts::file_systems()?;
    mounts::system_settings();
    let text = std::fs::read_to_string(JOB).with_context(|| format!("read {JOB}"))?;
    let job = Job::parse(&text).with_context(|| format!("parse {JOB}"))?;
    load_driver(&job)?;
    if job.share {
        mounts::share()?;
    }
    let status = process::run(&job, control)?;
    process::end_stragglers();
    Ok(status)
}

/// Load the module and wait for its devices. Only a user's own program may do without a module: whoever left it out of the
/// image wants that guest as it is.
fn load_driver(job: &Job) -> Result<()> {
    let optional = matches!(job.mode, Mode::Run | Mode::Shell);
    if optional && !std::path::Path::new(module::MODULE).exists() {
        kmsg::say(&format!("no {} in the initial RAM disk: going on without the driver", module::MODULE));
        return Ok(());
    }
    module::load(&job.module_parameters)?;
    module::wait_for_devices(job.scaled(module::DEVICES_TIMEOUT))
}

/// The running kernel's release, as `uname -r`.
fn kernel_release() -> String {
    match nix::sys::utsname::uname() {
        Ok(name) => name.release().to_string_lossy().into_owned(),
        Err(e) => format!("unknown ({e})"),
    }
}

/// Say `alive` for ever from a thread of its own.
fn start_alive(control: &Arc<Control>) -> Result<()> {
    let control = Arc::clone(control);
    let body = move || {
        loop {
            std::thread::sleep(ALIVE_PERIOD);
            control.alive();
        }
    };
    std::thread::Builder::new().name("alive".into()).spawn(body).context("start the alive thread")?;
    Ok(())
}

/// Turn a panic of any thread into `svadev:fatal`: a dead PID 1 is a kernel panic, which would hide the reason.
fn report_panics(control: &Arc<Control>) {
    let control = Arc::clone(control);
    std::panic::set_hook(Box::new(move |info| {
        control.fatal_from_panic(&format!("svadev-init: {info}"));
        power_off();
    }));
}

/// Power the machine off; if the kernel cannot, stop it in the way that ends QEMU soonest. Does not return.
fn power_off() {
    sync();
    for how in [RebootMode::RB_POWER_OFF, RebootMode::RB_AUTOBOOT, RebootMode::RB_HALT_SYSTEM] {
        let Err(e) = reboot(how);
        kmsg::say(&format!("reboot({how:?}): {e}"));
    }
    // PID 1 must not end: that would be a kernel panic in place of a message.
    loop {
        std::thread::park();
    }
}
