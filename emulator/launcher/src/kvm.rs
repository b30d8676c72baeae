//! The choice between KVM and TCG. KVM is used only after a probe booted a kernel with it: on some hosts `/dev/kvm`
//! opens, but no kernel boots.
use std::{path::Path, time::Duration};

use anyhow::Context as _;

use crate::{
    control::Message,
    exit::{Exit, Failure, OrExit as _, Outcome},
    guest_image,
    kit::cache_folder,
    run::{self, Ended, Observer, Plan, Terminal, folder::RunFolder},
    runtime::block_on,
    say::Step,
    topology::{Accel, Levels, Topology},
};

/// Time limit of the probe's guest. With a working KVM it takes a second.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// What the probe's guest says.
const WORD: &str = "svadev-probe: it boots";

/// What the decision depends on.
#[derive(Debug)]
pub struct Choice<'a> {
    /// The machine.
    pub topology: &'a Topology,
    /// QEMU.
    pub qemu: &'a Path,
    /// Kernel.
    pub kernel: &'a Path,
    /// busybox, for the probe's guest.
    pub busybox: &'a Path,
}

/// What keeps KVM from being used, as far as it is known without trying.
pub fn obstacle(topology: &Topology) -> Option<String> {
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Some(format!("/dev/kvm: {error}"));
    }
    if topology.machine.levels == Levels::Five && !host_has_la57() {
        return Some(
            "this host's CPU has no five-level paging (la57), which this machine has; with --levels 4 KVM is tried"
                .into(),
        );
    }
    None
}

impl Choice<'_> {
    /// Decides. If `auto` becomes TCG, tells the user why.
    pub fn decide(&self) -> Outcome<Accel> {
        let wanted = self.topology.machine.accel;
        if wanted == Accel::Tcg {
            return Ok(Accel::Tcg);
        }
        match self.why_not_kvm()? {
            None => Ok(Accel::Kvm),
            Some(reason) if wanted == Accel::Kvm => Err(Failure::new(Exit::Setup, format!("--accel kvm: {reason}"))),
            Some(reason) => {
                note!("KVM is not used: {reason}; the guest runs under TCG");
                Ok(Accel::Tcg)
            }
        }
    }

    fn why_not_kvm(&self) -> Outcome<Option<String>> {
        if let Some(obstacle) = obstacle(self.topology) {
            return Ok(Some(obstacle));
        }
        let key = self.cache_key().or_exit(Exit::Setup)?;
        let file = cache_folder().or_exit(Exit::Setup)?.join("kvm-probe");
        if let Ok(text) = std::fs::read_to_string(&file)
            && let Some(result) = text.strip_prefix(&format!("{key}\n"))
        {
            return Ok((result != "ok").then(|| format!("{result} (from an earlier probe)")));
        }
        let result = self.probe()?;
        let text = format!("{key}\n{}", result.as_deref().unwrap_or("ok"));
        // If this fails, the next run probes again.
        _ = std::fs::create_dir_all(file.parent().expect("it is in a folder"))
            .and_then(|()| std::fs::write(&file, text));
        Ok(result)
    }

    /// The key of a cached answer: this boot of the host, QEMU and the guest kernel.
    fn cache_key(&self) -> anyhow::Result<String> {
        let boot =
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the host's boot ID")?;
        let stamp = |path: &Path| -> anyhow::Result<String> {
            let meta = path.metadata().with_context(|| path.display().to_string())?;
            Ok(format!("{} {} {:?}", path.display(), meta.len(), meta.modified()?))
        };
        Ok(format!("{} {} {}", boot.trim(), stamp(self.qemu)?, stamp(self.kernel)?))
    }

    /// Boots the kernel into a few lines of shell.
    fn probe(&self) -> Outcome<Option<String>> {
        let _step = Step::begin("trying KVM");
        let folder = RunFolder::create().or_exit(Exit::Setup)?;
        let initrd = folder.path().join("initrd.cpio");
        guest_image::write_probe(self.busybox, WORD, &initrd).or_exit(Exit::Setup)?;
        let plan = Plan {
            topology: self.topology,
            accel: Accel::Kvm,
            qemu: self.qemu,
            kernel: self.kernel,
            initrd: &initrd,
            share: None,
            extra: &[],
            has_our_init: false,
            timeout: Some(PROBE_LIMIT),
            watchdog: true,
            timeout_scale: 1,
            terminal: Terminal::Log,
            until_placed: false,
        };
        let mut heard = Heard(false);
        let report = block_on(run::run(&plan, &folder, None, &mut heard))?;
        match report.ended {
            Err(failure) if failure.exit == Exit::Interrupted => Err(failure),
            Ok(Ended::PoweredOff) if heard.0 => Ok(None),
            Err(failure) if failure.exit == Exit::GuestHung => {
                Ok(Some(format!("KVM is available, but a kernel did not boot within {} s", PROBE_LIMIT.as_secs())))
            }
            Err(failure) => Ok(Some(format!("KVM is available, but a kernel did not boot: {failure}"))),
            Ok(_) => Ok(Some("KVM is available, but a kernel booted without reaching its first program".into())),
        }
    }
}

struct Heard(bool);

impl Observer for Heard {
    fn control(&mut self, _: &Message) {}
    fn kernel(&mut self, line: &str) {
        self.0 |= line.contains(WORD);
    }
}

fn host_has_la57() -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines().any(|line| line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "la57"))
}
