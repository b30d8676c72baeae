//! QEMU's command line, from the machine.
use std::path::{Path, PathBuf};

use svadev_fabric::Bdf;

use crate::{
    dmar,
    topology::{Accel, Levels, Topology},
};

/// Guest memory from which a 1 GiB page is set aside at boot. q35 puts all but 2 GiB above 4 GiB; the kernel's own
/// early allocations come from the top, so that the first gigabyte there is whole if there are two.
const GIGANTIC_PAGE_FROM: u64 = 4 << 30;
/// Guest memory from which 2 MiB pages are set aside at boot.
const HUGE_PAGES_FROM: u64 = 1 << 30;
/// Name of the virtiofs tag that PID 1 mounts.
const SHARE_TAG: &str = "share";

/// What a command line is made of.
#[derive(Clone, Debug)]
pub struct CommandLine<'a> {
    /// The machine.
    pub topology: &'a Topology,
    /// `topology.machine.accel`, decided.
    pub accel: Accel,
    /// Our functions and their vfio-user sockets.
    pub functions: &'a [(Bdf, PathBuf)],
    /// File with the DMAR table.
    pub dmar: Option<&'a Path>,
    /// Kernel to boot directly.
    pub boot: Option<Boot<'a>>,
    /// Sockets of the guest's channels and of QMP; without them QEMU's defaults stay.
    pub channels: Option<&'a Channels>,
    /// virtiofsd's socket.
    pub share: Option<&'a Path>,
    /// The user's own arguments, last.
    pub extra: &'a [String],
}

/// A kernel that QEMU loads itself.
#[derive(Clone, Debug)]
pub struct Boot<'a> {
    /// bzImage.
    pub kernel: &'a Path,
    /// Initial RAM disk.
    pub initrd: Option<&'a Path>,
}

/// Sockets on which the launcher listens and to which QEMU connects.
#[derive(Clone, Debug)]
pub struct Channels {
    /// `ttyS0`: kernel log.
    pub console: PathBuf,
    /// `ttyS1`: control lines.
    pub control: PathBuf,
    /// `ttyS2`: the program's standard streams.
    pub program: PathBuf,
    /// QEMU's monitor.
    pub qmp: PathBuf,
}

/// The user's arguments without those that stop the machine or wait for a debugger, for a start that is not the user's.
pub fn without_debugging(extra: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = extra.iter();
    while let Some(word) = words.next() {
        match word.trim_start_matches('-') {
            "S" | "s" if word.starts_with('-') => {}
            "gdb" | "trace" | "d" | "D" if word.starts_with('-') => _ = words.next(),
            _ => kept.push(word.clone()),
        }
    }
    kept
}

/// The kernel command line that the machine needs, with the user's own part last so that it wins.
pub fn kernel_command_line(topology: &Topology, accel: Accel) -> String {
    // `intremap=off`: otherwise the unit's registers are claimed before PCI resources are, and Linux moves the BAR away
    // from under its own IOMMU. `panic=-1` with `-no-reboot`: a panic ends QEMU at once. `nokaslr`: traces can be
    // looked up in the kernel's symbols, and the kernel is not in the way of a 1 GiB page.
    let mut line = String::from("console=ttyS0 panic=-1 intel_iommu=on,sm_on intremap=off nokaslr");
    if accel != Accel::Kvm {
        // Its TSC is one clock of the host's for all CPUs. Linux 7.3's clocksource watchdog, which would check that,
        // can wait without end for a CPU that is in stop_machine() during boot (docs/found.md): a slow host meets that
        // once in some runs.
        line.push_str(" tsc=reliable");
    }
    if topology.machine.memory_bytes >= HUGE_PAGES_FROM {
        line.push_str(" default_hugepagesz=2M");
    }
    if topology.machine.memory_bytes >= GIGANTIC_PAGE_FROM {
        line.push_str(" hugepagesz=1G hugepages=1");
    }
    if topology.machine.memory_bytes >= HUGE_PAGES_FROM {
        line.push_str(" hugepagesz=2M hugepages=16");
    }
    let own = topology.machine.append.trim();
    if !own.is_empty() {
        line.push(' ');
        line.push_str(own);
    }
    line
}

impl CommandLine<'_> {
    /// The arguments, without the program.
    pub fn build(&self) -> Vec<String> {
        let mut args = self.machine();
        if let Some(channels) = self.channels {
            // Nothing that QEMU would add by itself: the machine is what the topology says.
            args.extend(strings(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]));
            args.extend(channels.build());
        }
        args.extend(self.devices());
        if let Some(socket) = self.share {
            args.extend(["-chardev".into(), format!("socket,id=share,path={}", option_value(socket))]);
            args.extend(["-device".into(), format!("vhost-user-fs-pci,chardev=share,tag={SHARE_TAG}")]);
        }
        if let Some(boot) = &self.boot {
            args.extend(["-kernel".into(), boot.kernel.display().to_string()]);
            if let Some(initrd) = boot.initrd {
                args.extend(["-initrd".into(), initrd.display().to_string()]);
            }
            args.extend(["-append".into(), kernel_command_line(self.topology, self.accel)]);
        }
        args.extend(self.extra.iter().cloned());
        args
    }

    fn machine(&self) -> Vec<String> {
        let machine = &self.topology.machine;
        let mut args = strings(&["-machine", "q35,memory-backend=ram"]);
        if let Some(name) = self.accel.qemu_name() {
            args.extend(strings(&["-accel", name]));
        }
        // `max`: the unit's first-stage page sizes and levels follow what the virtual CPU has.
        let cpu = match machine.levels {
            Levels::Four => "max,la57=off",
            Levels::Five => "max",
        };
        args.extend(strings(&["-cpu", cpu, "-smp", &machine.cpus.to_string()]));
        let mebibytes = machine.memory_bytes >> 20;
        args.extend(["-m".into(), format!("{mebibytes}M")]);
        // Shared, so that the backend can map it: DMA is loads and stores there.
        args.extend(["-object".into(), format!("memory-backend-memfd,id=ram,size={mebibytes}M,share=on")]);
        args
    }

    fn devices(&self) -> Vec<String> {
        let mut args = Vec::new();
        for (bdf, socket) in self.functions {
            args.extend(["-device".into(), function_device(*bdf, socket)]);
        }
        if let Some(file) = self.dmar {
            args.extend(["-acpitable".into(), format!("{},data={}", dmar::ACPITABLE, option_value(file))]);
        }
        args
    }
}

impl Channels {
    /// Sockets in a folder.
    pub fn within(folder: &Path) -> Self {
        Self {
            console: folder.join("console.sock"),
            control: folder.join("control.sock"),
            program: folder.join("program.sock"),
            qmp: folder.join("qmp.sock"),
        }
    }

    fn build(&self) -> Vec<String> {
        let mut args = Vec::new();
        // ttyS2 would share interrupt 4 with ttyS0, and ISA interrupts are edges: give it one of its own. The kernel
        // learns it from the ACPI description of the port.
        let ports =
            [("console", &self.console, ""), ("control", &self.control, ""), ("program", &self.program, ",irq=7")];
        for (index, (id, path, irq)) in ports.into_iter().enumerate() {
            args.extend(["-chardev".into(), format!("socket,id={id},path={}", option_value(path))]);
            args.extend(["-device".into(), format!("isa-serial,chardev={id},index={index}{irq}")]);
        }
        args.extend(["-qmp".into(), format!("unix:{}", option_value(&self.qmp))]);
        args
    }
}

/// The `-device` value of a function. JSON, since `socket` is a structure.
fn function_device(bdf: Bdf, socket: &Path) -> String {
    serde_json::json!({
        "driver": "vfio-user-pci",
        "id": format!("svadev-{:02x}", bdf.device()),
        "bus": "pcie.0",
        "addr": format!("{:02x}.{}", bdf.device(), bdf.function()),
        "socket": {"type": "unix", "path": socket},
    })
    .to_string()
}

/// A path as a value in QEMU's `key=value,key=value` syntax, where a comma is written twice.
fn option_value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// The words quoted for a POSIX shell.
pub fn shell_quoted(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
    let quote = |word: &String| match word.chars().all(plain) && !word.is_empty() {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// What of the machine a libvirt domain needs from us; the rest is the domain's own.
pub fn libvirt_xml(line: &CommandLine<'_>) -> String {
    let machine = &line.topology.machine;
    let mut xml =
        String::from("<!-- in <domain type='...' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'> -->\n");
    xml.push_str("<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\n");
    xml.push_str("<cpu mode='maximum' check='none'>");
    if machine.levels == Levels::Four {
        xml.push_str("<feature policy='disable' name='la57'/>");
    }
    xml.push_str("</cpu>\n");
    xml.push_str(&format!(
        "<!-- the guest's kernel command line: {} -->\n",
        xml_escaped(&kernel_command_line(line.topology, line.accel))
    ));
    xml.push_str("<qemu:commandline>\n");
    for word in line.devices() {
        xml.push_str(&format!("  <qemu:arg value='{}'/>\n", xml_escaped(&word)));
    }
    xml.push_str("</qemu:commandline>\n");
    xml
}

fn xml_escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology;

    fn line(topology: &Topology) -> CommandLine<'_> {
        let accel = Accel::Tcg;
        CommandLine { topology, accel, functions: &[], dmar: None, boot: None, channels: None, share: None, extra: &[] }
    }

    fn default() -> Topology {
        Topology::parse("t", topology::DEFAULT).unwrap()
    }

    /// The value after a flag.
    fn values<'a>(args: &'a [String], flag: &str) -> Vec<&'a str> {
        args.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn ram_is_shared_and_its_sizes_agree() {
        let topology = default();
        let args = line(&topology).build();
        assert_eq!(values(&args, "-m"), ["4096M"]);
        assert_eq!(values(&args, "-object"), ["memory-backend-memfd,id=ram,size=4096M,share=on"]);
        assert_eq!(values(&args, "-machine"), ["q35,memory-backend=ram"]);
        assert_eq!(values(&args, "-cpu"), ["max"]);
    }

    #[test]
    fn four_levels_hide_la57() {
        let mut topology = default();
        topology.machine.levels = Levels::Four;
        assert_eq!(values(&line(&topology).build(), "-cpu"), ["max,la57=off"]);
    }

    #[test]
    fn functions_are_json_devices_at_their_addresses() {
        let topology = default();
        let functions = [(Bdf::new(0, 0x1e, 0).unwrap(), PathBuf::from("/run/a \"b\".sock"))];
        let args = CommandLine { functions: &functions, ..line(&topology) }.build();
        let device: serde_json::Value = serde_json::from_str(values(&args, "-device")[0]).unwrap();
        assert_eq!(device["driver"], "vfio-user-pci");
        assert_eq!(device["addr"], "1e.0");
        assert_eq!(device["socket"]["path"], "/run/a \"b\".sock");
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        let topology = default();
        let channels = Channels::within(Path::new("/r,1"));
        let line = CommandLine { channels: Some(&channels), dmar: Some(Path::new("/d,1")), ..line(&topology) };
        let args = line.build();
        assert!(values(&args, "-chardev").contains(&"socket,id=console,path=/r,,1/console.sock"));
        assert!(values(&args, "-acpitable")[0].ends_with(",data=/d,,1"));
        assert_eq!(values(&args, "-device")[2], "isa-serial,chardev=program,index=2,irq=7");
    }

    #[test]
    fn a_gigantic_page_is_set_aside_only_where_it_fits() {
        let mut topology = default();
        assert!(kernel_command_line(&topology, Accel::Kvm).contains("hugepagesz=1G hugepages=1 hugepagesz=2M"));
        topology.machine.memory_bytes = 1 << 30;
        assert!(!kernel_command_line(&topology, Accel::Kvm).contains("1G"));
        topology.machine.memory_bytes = 512 << 20;
        topology.machine.append = " quiet ".into();
        let line = kernel_command_line(&topology, Accel::Kvm);
        assert_eq!(line, "console=ttyS0 panic=-1 intel_iommu=on,sm_on intremap=off nokaslr quiet");
        let line = kernel_command_line(&topology, Accel::Tcg);
        assert_eq!(line, "console=ttyS0 panic=-1 intel_iommu=on,sm_on intremap=off nokaslr tsc=reliable quiet");
    }

    #[test]
    fn quoting() {
        let words = ["-device", "{\"a\":\"it's\"}", "", "a=b,c"].map(str::to_owned);
        assert_eq!(shell_quoted(&words), r#"-device '{"a":"it'\''s"}' '' a=b,c"#);
    }

    #[test]
    fn libvirt_elements_are_escaped() {
        let topology = default();
        let functions = [(topology.iommus[0].bdf, PathBuf::from("/run/s.sock"))];
        let xml = libvirt_xml(&CommandLine { functions: &functions, ..line(&topology) });
        assert!(xml.contains("value='{&quot;addr&quot;:&quot;05.0&quot;"), "{xml}");
    }

    #[test]
    fn the_page_has_the_command_line_that_the_kernel_gets() {
        let page = include_str!("../../../../docs/own-kernel.md");
        let topology = Topology::parse("t", topology::DEFAULT).unwrap();
        let line = kernel_command_line(&topology, Accel::Tcg);
        assert!(page.lines().any(|text| text.trim() == line), "docs/own-kernel.md lacks the line {line}");
    }

    #[test]
    fn arguments_for_a_debugger_are_told_from_others() {
        let args = ["-S", "-gdb", "tcp::1", "-s", "-device", "edu", "-d", "int", "-smbios", "S"].map(str::to_owned);
        assert_eq!(without_debugging(&args), ["-device", "edu", "-smbios", "S"]);
    }
}
