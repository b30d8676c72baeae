//! The ACPI DMAR table that tells the guest kernel where the remapping unit is and which functions are behind it.
//!
//! Intel Virtualization Technology for Directed I/O, architecture specification 4.1, chapter 8. The 36-byte ACPI table
//! header is QEMU's to write (`-acpitable sig=DMAR,data=FILE`): this is what follows it.
use std::collections::BTreeSet;
use std::path::Path;

use anyhow::ensure;
use svadev_fabric::Bdf;

use crate::{
    exit::{Exit, OrExit as _, Outcome},
    files,
    topology::Topology,
};

/// Arguments of `-acpitable` that fill the header, without `data=`.
pub const ACPITABLE: &str = "sig=DMAR,rev=1,oem_id=SVADEV,oem_table_id=SVADEV,oem_rev=1";

/// Flags (§8.1): no interrupt remapping (bit 0), nothing said about x2APIC (bit 1), no DMA-protection opt-in (bit 2).
const FLAGS: u8 = 0;
/// Remapping structure type 0 (§8.3): DMA Remapping Hardware Unit Definition.
const DRHD: u16 = 0;
/// DRHD flags (§8.3): INCLUDE_PCI_ALL (bit 0) is clear, so only the device scopes below are behind the unit.
const DRHD_FLAGS: u8 = 0;
/// DRHD size (§8.3): 2^0 pages of 4 KiB registers.
const DRHD_SIZE: u8 = 0;
/// PCI segment of the unit and its functions.
const SEGMENT: u16 = 0;
/// Device scope entry type 1 (§8.3.1): PCI Endpoint Device.
const SCOPE_PCI_ENDPOINT: u8 = 1;
/// Bytes of a DRHD before its device scopes (§8.3).
const DRHD_HEADER: usize = 16;
/// Bytes of a device scope with a path of one hop (§8.3.1).
const SCOPE_LENGTH: u8 = 8;

/// More bytes than a table has: one function in each slot of a bus.
const MAX_TABLE: u64 = 4096;

/// Address of the first unit in a table that is made before any firmware has placed it: a page where nothing is.
const UNKNOWN_ADDRESS: u64 = 0xfebf_f000;

/// Addresses of the units in a table that is made before any firmware has placed them.
pub fn unknown_addresses(topology: &Topology) -> Vec<u64> {
    (0..).map(|index| UNKNOWN_ADDRESS - (index << 12)).take(topology.iommus.len()).collect()
}

/// The table for the machine, with the units' registers at these guest-physical addresses, in the topology's order.
pub fn table(topology: &Topology, unit_addresses: &[u64]) -> Vec<u8> {
    assert_eq!(unit_addresses.len(), topology.iommus.len(), "each unit has an address");
    // Host address width: what DMA can reach. The table holds one less (§8.1).
    let mut table = vec![topology.host_address_width() - 1, FLAGS];
    table.extend([0; 10]);
    for (index, &address) in unit_addresses.iter().enumerate() {
        assert_eq!(address & 0xfff, 0, "the unit's registers are a page");
        let mut scopes = Vec::new();
        for function in topology.accelerators.iter().filter(|function| function.iommu == index) {
            push_scope(&mut scopes, function.bdf);
        }
        let length = u16::try_from(DRHD_HEADER + scopes.len()).expect("a bus has 32 slots");
        table.extend(DRHD.to_le_bytes());
        table.extend(length.to_le_bytes());
        table.extend([DRHD_FLAGS, DRHD_SIZE]);
        table.extend(SEGMENT.to_le_bytes());
        table.extend(address.to_le_bytes());
        table.extend(scopes);
    }
    table
}

fn push_scope(scopes: &mut Vec<u8>, bdf: Bdf) {
    // Type, length, flags, reserved, enumeration ID (only for IOAPIC, HPET and ACPI devices), start bus, path.
    scopes.extend([SCOPE_PCI_ENDPOINT, SCOPE_LENGTH, 0, 0, 0, bdf.bus(), bdf.device(), bdf.function()]);
}

/// Writes the table with the units at these addresses, so that a reader sees the old one or the new one.
///
/// Errors: the file is there and is no DMAR table, or it cannot be written.
pub fn write_table(topology: &Topology, addresses: &[u64], file: &Path) -> Outcome<()> {
    refuse_other_files(file).or_exit(Exit::Usage)?;
    // QEMU may run as another user, as it does under libvirt. The table is no secret.
    files::write_as(file, &table(topology, addresses), Some(0o644)).or_exit(Exit::Usage)
}

/// A person's file is not replaced by a table: only an empty file, and a table as this program writes it.
fn refuse_other_files(file: &Path) -> anyhow::Result<()> {
    if file == Path::new(files::STANDARD_OUTPUT) {
        return Ok(());
    }
    if let Some(bytes) = files::read_start(file, MAX_TABLE)? {
        let ours = bytes.is_empty() || looks_like_a_table(&bytes);
        ensure!(ours, "{} is not a DMAR table: it is not replaced; choose another name", file.display());
    }
    Ok(())
}

/// Whether this program may have written the bytes, for any machine.
fn looks_like_a_table(bytes: &[u8]) -> bool {
    let header = bytes.get(..14).is_some_and(|head| head[1..].iter().all(|&byte| byte == 0));
    header && units(bytes).is_some()
}

/// The addresses of the units in a table as this program writes it. `None`: it is not one.
fn units(bytes: &[u8]) -> Option<Vec<u64>> {
    let mut rest = bytes.get(12..).filter(|rest| !rest.is_empty())?;
    let mut addresses = Vec::new();
    while !rest.is_empty() {
        let length = usize::from(u16::from_le_bytes(rest.get(2..4)?.try_into().ok()?));
        if rest[..2] != DRHD.to_le_bytes() || length < DRHD_HEADER {
            return None;
        }
        addresses.push(u64::from_le_bytes(rest.get(8..16)?.try_into().ok()?));
        rest = rest.get(length..)?;
    }
    Some(addresses)
}

/// A file with the DMAR table of a machine. It follows the units' BARs.
#[derive(Debug)]
pub struct TableFile<'a> {
    file: Option<&'a Path>,
    topology: &'a Topology,
    addresses: Vec<u64>,
    /// Units that were placed since a VMM connected.
    placed: BTreeSet<usize>,
}

impl<'a> TableFile<'a> {
    /// Keeps the file if it is a table of this machine, else writes a new one. Without a file, only tells the user
    /// where the units are.
    pub fn open(file: Option<&'a Path>, topology: &'a Topology) -> Outcome<Self> {
        let mut table = Self { file, topology, addresses: unknown_addresses(topology), placed: BTreeSet::new() };
        let Some(path) = file else { return Ok(table) };
        match std::fs::read(path).ok().and_then(|bytes| known_addresses(topology, &bytes)) {
            Some(addresses) => table.addresses = addresses,
            None => write_table(topology, &table.addresses, path)?,
        }
        Ok(table)
    }

    /// A unit was placed. The first place after a VMM connected is firmware's, and counts: the file is rewritten if
    /// it says another. A guest that moves its BAR later changes nothing here, however often it does.
    pub fn placed(&mut self, unit: Bdf, address: u64) {
        let Some(index) = self.topology.unit_at(unit) else { return };
        let name = self.topology.unit_name(index);
        if !self.placed.insert(index) {
            tracing::info!("the guest moved {name}'s BAR to {address:#x}: add intremap=off to its command line");
            return;
        }
        let Some(file) = self.file else {
            say!("{name}'s BAR is at {address:#x}");
            return;
        };
        if address == self.addresses[index] {
            say!("{name}'s BAR is at {address:#x}, as in {}", file.display());
            return;
        }
        let mut addresses = self.addresses.clone();
        addresses[index] = address;
        match write_table(self.topology, &addresses, file) {
            Ok(()) => {
                self.addresses = addresses;
                let file = file.display();
                say!("{name}'s BAR is at {address:#x}; {file} had another address and is updated: restart QEMU");
            }
            Err(failure) => say!("{name}'s BAR is at {address:#x}, and the table still says another: {failure}"),
        }
    }

    /// A VMM disconnected: the next one's firmware places the units anew.
    pub fn disconnected(&mut self) {
        self.placed.clear();
    }
}

/// The units' addresses in `bytes`, if they are a table of this machine.
fn known_addresses(topology: &Topology, bytes: &[u8]) -> Option<Vec<u64>> {
    let addresses = units(bytes).filter(|addresses| addresses.len() == topology.iommus.len())?;
    let aligned = addresses.iter().all(|address| address & 0xfff == 0);
    (aligned && table(topology, &addresses) == bytes).then_some(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_a_table_written_by_hand() {
        let topology = Topology::parse(
            "t",
            "[iommu]\naddress = \"00:05.0\"\n[[accelerators]]\naddress = \"00:06.0\"\n[[accelerators]]\naddress = \"00:1e.0\"\n",
        )
        .unwrap();
        assert_eq!(svadev_iommu::UnitConfig::default().host_address_width, 0x33 + 1, "the unit's width");
        #[rustfmt::skip]
        let by_hand = [
            0x33, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0x00, 0x00, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xf0, 0xbf, 0xfe, 0x00, 0x00, 0x00, 0x00,
            0x01, 0x08, 0x00, 0x00, 0x00, 0x00, 0x06, 0x00,
            0x01, 0x08, 0x00, 0x00, 0x00, 0x00, 0x1e, 0x00,
        ];
        assert_eq!(table(&topology, &[0xfebf_f000]), by_hand);
    }

    #[test]
    fn each_unit_has_an_entry_with_what_is_behind_it() {
        let text = "[[iommus]]\naddress = \"00:04.0\"\n[[iommus]]\naddress = \"00:05.0\"\n\
                    unit = { address_bits = 40 }\n\
                    [[accelerators]]\naddress = \"00:06.0\"\niommu = \"iommu1\"\n\
                    [[accelerators]]\naddress = \"00:07.0\"\n";
        let topology = Topology::parse("t", text).unwrap();
        #[rustfmt::skip]
        let by_hand = [
            0x33, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0x00, 0x00, 0x18, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
            0x01, 0x08, 0x00, 0x00, 0x00, 0x00, 0x07, 0x00,
            0x00, 0x00, 0x18, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
            0x01, 0x08, 0x00, 0x00, 0x00, 0x00, 0x06, 0x00,
        ];
        assert_eq!(table(&topology, &[0x1000, 0x2000]), by_hand);
        assert!(looks_like_a_table(&by_hand) && !looks_like_a_table(&by_hand[..by_hand.len() - 1]));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dmar.bin");
        let mut kept = TableFile::open(Some(&file), &topology).unwrap();
        kept.placed(topology.iommus[1].bdf, 0x2000);
        kept.placed(topology.iommus[0].bdf, 0x1000);
        assert_eq!(std::fs::read(&file).unwrap(), by_hand);
        assert_eq!(TableFile::open(Some(&file), &topology).unwrap().addresses, [0x1000, 0x2000]);
    }

    #[test]
    fn an_address_above_4_gib_is_kept_whole() {
        let topology = Topology::parse("t", crate::topology::DEFAULT).unwrap();
        assert_eq!(table(&topology, &[0x38_1234_5000])[20..28], 0x38_1234_5000_u64.to_le_bytes());
    }

    #[test]
    fn a_table_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dmar.bin");
        let topology = Topology::parse("t", crate::topology::DEFAULT).unwrap();
        for address in [0xfebf_f000, 0xc000_0000] {
            write_table(&topology, &[address], &file).unwrap();
            assert_eq!(std::fs::read(&file).unwrap(), table(&topology, &[address]));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
        assert_eq!(write_table(&topology, &[0x1000], Path::new("/no/such/f")).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn the_table_follows_the_bar_and_is_kept_from_run_to_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dmar.bin");
        let topology = Topology::parse("t", crate::topology::DEFAULT).unwrap();
        let unit = topology.iommus[0].bdf;
        let mut kept = TableFile::open(Some(&file), &topology).unwrap();
        kept.placed(unit, 0x38_0000_0000);
        // The guest's kernel moves it, again and again: that is not firmware's doing, and changes nothing.
        (1..100).for_each(|n| kept.placed(unit, 0x4000_0000 + (n << 20)));
        assert_eq!(std::fs::read(&file).unwrap(), table(&topology, &[0x38_0000_0000]));
        assert_eq!(TableFile::open(Some(&file), &topology).unwrap().addresses, [0x38_0000_0000]);
        kept.disconnected();
        kept.placed(unit, 0x39_0000_0000);
        assert_eq!(
            std::fs::read(&file).unwrap(),
            table(&topology, &[0x39_0000_0000]),
            "the next firmware's word counts"
        );
        let other = topology.accelerators[..1].to_vec();
        let other = Topology { accelerators: other, ..topology.clone() };
        assert_eq!(TableFile::open(Some(&file), &other).unwrap().addresses, [UNKNOWN_ADDRESS]);
        assert_eq!(
            std::fs::read(&file).unwrap(),
            table(&other, &[UNKNOWN_ADDRESS]),
            "another machine's table is replaced"
        );
    }

    #[test]
    fn a_persons_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("notes.txt");
        let topology = Topology::parse("t", crate::topology::DEFAULT).unwrap();
        for notes in ["not a table", "x", &"a longer text, with more bytes than a table has ".repeat(200)] {
            std::fs::write(&file, notes).unwrap();
            let refused = TableFile::open(Some(&file), &topology).unwrap_err();
            assert_eq!(refused.exit, Exit::Usage);
            assert!(refused.to_string().contains("not a DMAR table"), "{refused}");
            assert!(write_table(&topology, &[0x1000], &file).is_err());
            assert_eq!(std::fs::read_to_string(&file).unwrap(), notes);
        }
        std::fs::write(&file, "").unwrap();
        write_table(&topology, &[0x1000], &file).unwrap();
        assert!(write_table(&topology, &[0x1000], folder.path()).is_err(), "a folder is no file");
    }
}
