//! What shared virtual addressing needs of kernel, unit and function, and what is missing.
use std::path::Path;

use svadev_guest::Device;

/// Bits of a unit's capability registers (VT-d 4.1 §11.4.2, §11.4.3).
const CAP_1GIB_PAGES: u64 = 1 << 56;
const CAP_5_LEVELS: u64 = 1 << 60;
const ECAP_PASID: u64 = 1 << 40;
const ECAP_SCALABLE: u64 = 1 << 43;
const ECAP_FIRST_STAGE: u64 = 1 << 47;
const ECAP_COHERENT: u64 = 1 << 48;

/// Extended capabilities (PCIe 6.0 §7.6).
const ATS: u32 = 0x0f;
const PRI: u32 = 0x13;
const PASID: u32 = 0x1b;
/// First extended capability in configuration space.
const EXTENDED: usize = 0x100;

/// What is known about a function and what is around it.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The kernel's command line.
    command_line: String,
    /// Flags of the processor.
    processor: String,
    /// Configuration space of the function.
    config: Vec<u8>,
    /// CAP and ECAP of the unit that the kernel uses for the function.
    unit: Option<(u64, u64)>,
}

impl Machine {
    /// Looks at a function. What cannot be read counts as not there.
    #[must_use]
    pub fn around(device: &Device) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let Ok(query) = device.query() else { return Self::default() };
        let function = format!("/sys/bus/pci/devices/{}", query.pci_address);
        let register =
            |name: &str| u64::from_str_radix(read(&format!("{function}/iommu/intel-iommu/{name}")).trim(), 16).ok();
        Self {
            command_line: read("/proc/cmdline"),
            processor: read("/proc/cpuinfo"),
            config: std::fs::read(format!("{function}/config")).unwrap_or_default(),
            unit: register("cap").zip(register("ecap")),
        }
    }

    /// The offset of an extended capability.
    fn capability(&self, id: u32) -> Option<usize> {
        let mut at = EXTENDED;
        // As many as there is room for: a list that goes round ends, too.
        for _ in 0..(4096 - EXTENDED) / 8 {
            let header = u32::from_le_bytes(self.config.get(at..at + 4)?.try_into().ok()?);
            if header & 0xffff == id {
                return Some(at);
            }
            at = usize::try_from(header >> 20).ok().filter(|&next| next >= EXTENDED)?;
        }
        None
    }

    /// Whether the kernel has enabled page requests of the function (PRI control, bit 0).
    #[must_use]
    pub fn has_page_requests(&self) -> bool {
        let control = self.capability(PRI).and_then(|at| self.config.get(at + 4));
        control.is_some_and(|control| control & 1 != 0)
    }

    fn has_option(&self, name: &str, value: &str) -> bool {
        let words = self.command_line.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        words.flat_map(|values| values.split(',')).any(|each| each == value)
    }

    fn processor_has(&self, flag: &str) -> bool {
        self.processor.lines().filter(|line| line.starts_with("flags")).any(|l| l.split_whitespace().any(|f| f == flag))
    }

    /// Why the kernel lets no process bind: the first thing that is missing, and what gives it.
    #[must_use]
    pub fn missing(&self) -> String {
        let Some((cap, ecap)) = self.unit else {
            let off = self.has_option("intel_iommu", "off") || !self.has_option("intel_iommu", "on");
            return if off {
                "the kernel does not use the IOMMU: intel_iommu=on,sm_on must be on its command line, without \
                 intel_iommu=off after it"
            } else {
                "no IOMMU is in front of the function: the DMAR table must name both (svadev dmar)"
            }
            .into();
        };
        let unit = |what: &str, option: &str| format!("the unit has no {what}: give it back with --unit {option}");
        if ecap & ECAP_SCALABLE == 0 || ecap & ECAP_PASID == 0 {
            return unit("scalable mode and no PASIDs", "scalable_mode=on");
        }
        if ecap & ECAP_FIRST_STAGE == 0 {
            return unit("first-stage translation", "first_stage=on");
        }
        if self.has_option("intel_iommu", "sm_off") || !self.has_option("intel_iommu", "sm_on") {
            return "scalable mode is off: intel_iommu=on,sm_on must be on the kernel's command line, without \
                    intel_iommu=sm_off after it"
                .into();
        }
        if self.has_option("pci", "noats") {
            return "ATS is off: leave pci=noats out of the kernel's command line".into();
        }
        for (id, name, key) in [(ATS, "ATS", "ats"), (PASID, "PASIDs", "pasid_bits")] {
            if self.capability(id).is_none() {
                return format!("the function has no {name}: {key} of its [[accelerators]] section gives them");
            }
        }
        if cap & CAP_5_LEVELS == 0 && self.processor_has("la57") {
            return "the processor has five levels of page tables and the unit four: --unit levels=5, or --levels 4"
                .into();
        }
        if cap & CAP_1GIB_PAGES == 0 && self.processor_has("pdpe1gb") {
            return unit("1 GiB pages, which the processor has", "largest_page=1G");
        }
        if ecap & ECAP_COHERENT == 0 {
            return unit("coherent table walks", "coherent=on");
        }
        "the kernel refuses shared virtual addressing: it must be built with CONFIG_INTEL_IOMMU_SVM, 6.19 or later"
            .into()
    }
}

/// What is missing on one of the functions so that no process can bind. `None`: all of them serve.
#[must_use]
pub fn missing(functions: &[impl AsRef<Path>]) -> Option<String> {
    functions.iter().find_map(|path| {
        let device = Device::open(path.as_ref()).ok()?;
        let error = device.bind().err()?;
        let name = path.as_ref().display();
        Some(format!("no process can bind to {name} ({error}): {}", Machine::around(&device).missing()))
    })
}

/// Whether each function can ask for pages that are not there.
#[must_use]
pub fn have_page_requests(functions: &[impl AsRef<Path>]) -> bool {
    functions.iter().all(|path| {
        // A function that cannot be opened is for the tests to report.
        Device::open(path.as_ref()).map_or(true, |device| Machine::around(&device).has_page_requests())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ATS with PRI and PASID behind it.
    fn machine() -> Machine {
        let mut config = vec![0; 4096];
        for (at, header) in [(0x100, 0x1101_000fu32), (0x110, 0x1201_0013), (0x120, 0x0001_001b)] {
            config[at..at + 4].copy_from_slice(&header.to_le_bytes());
        }
        config[0x114] = 1;
        let unit = Some((CAP_1GIB_PAGES | CAP_5_LEVELS, ECAP_PASID | ECAP_SCALABLE | ECAP_FIRST_STAGE | ECAP_COHERENT));
        let (command_line, processor) = ("quiet intel_iommu=on,sm_on".into(), "flags : fpu la57 pdpe1gb\n".into());
        Machine { command_line, processor, config, unit }
    }

    #[test]
    fn what_is_missing_is_named_with_what_gives_it() {
        let told = |change: fn(&mut Machine), words: &[&str]| {
            let mut machine = machine();
            change(&mut machine);
            let text = machine.missing();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        };
        fn unit(machine: &mut Machine, cap: u64, ecap: u64) {
            let (all, more) = machine.unit.unwrap();
            machine.unit = Some((all & !cap, more & !ecap));
        }
        told(
            |m| (m.unit, m.command_line) = (None, "intel_iommu=on,sm_on intel_iommu=off".into()),
            &["intel_iommu=off"],
        );
        told(|m| (m.unit, m.command_line) = (None, String::new()), &["intel_iommu=on,sm_on"]);
        told(|m| m.unit = None, &["DMAR"]);
        told(|m| m.command_line += " intel_iommu=sm_off", &["intel_iommu=sm_off"]);
        told(|m| m.command_line += " pci=noats", &["pci=noats"]);
        told(|m| unit(m, 0, ECAP_SCALABLE), &["--unit scalable_mode=on"]);
        told(|m| unit(m, 0, ECAP_FIRST_STAGE), &["--unit first_stage=on"]);
        told(|m| unit(m, 0, ECAP_COHERENT), &["--unit coherent=on"]);
        told(|m| unit(m, CAP_5_LEVELS, 0), &["--unit levels=5", "--levels 4"]);
        told(|m| unit(m, CAP_1GIB_PAGES, 0), &["--unit largest_page=1G"]);
        told(|m| m.config[0x100] = 0, &["no ATS"]);
        told(|m| m.config[0x120] = 0, &["no PASIDs"]);
        told(|_| {}, &["CONFIG_INTEL_IOMMU_SVM"]);
        // A processor without them needs none.
        let mut old = machine();
        old.processor.clear();
        unit(&mut old, CAP_5_LEVELS | CAP_1GIB_PAGES, 0);
        assert!(old.missing().contains("CONFIG_INTEL_IOMMU_SVM"));
    }

    #[test]
    fn page_requests_are_there_if_the_kernel_enabled_them() {
        let mut machine = machine();
        assert!(machine.has_page_requests());
        machine.config[0x114] = 0;
        assert!(!machine.has_page_requests());
        assert!(!Machine::default().has_page_requests());
    }
}
