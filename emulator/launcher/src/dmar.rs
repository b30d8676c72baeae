//! The ACPI DMAR table that tells the guest kernel where the remapping unit is and which functions are behind it.
//!
//! Intel Virtualization Technology for Directed I/O, architecture specification 4.1, chapter 8. The 36-byte ACPI table
//! header is QEMU's to write (`-acpitable sig=DMAR,data=FILE`): this is what follows it.
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

/// Host address width, bits: what DMA can reach. The table holds one less (§8.1).
const HOST_ADDRESS_WIDTH: u8 = svadev_iommu::UnitConfig::HOST_ADDRESS_WIDTH;
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
/// Bytes of a device scope with a path of one hop (§8.3.1).
const SCOPE_LENGTH: u8 = 8;

/// More bytes than a table has: one function in each slot of a bus.
const MAX_TABLE: u64 = 4096;

/// The unit's address in a table that is made before any firmware has placed the unit: a page where nothing is.
const UNKNOWN_ADDRESS: u64 = 0xfebf_f000;

/// The table for the machine, with the unit's registers at guest-physical `unit_address`.
pub fn table(topology: &Topology, unit_address: u64) -> Vec<u8> {
    assert_eq!(unit_address & 0xfff, 0, "the unit's registers are a page");
    let mut scopes = Vec::new();
    for function in &topology.accelerators {
        push_scope(&mut scopes, function.bdf);
    }
    let length = u16::try_from(16 + scopes.len()).expect("a bus has 32 slots");
    let mut table = vec![HOST_ADDRESS_WIDTH - 1, FLAGS];
    table.extend([0; 10]);
    table.extend(DRHD.to_le_bytes());
    table.extend(length.to_le_bytes());
    table.extend([DRHD_FLAGS, DRHD_SIZE]);
    table.extend(SEGMENT.to_le_bytes());
    table.extend(unit_address.to_le_bytes());
    table.extend(scopes);
    table
}

fn push_scope(scopes: &mut Vec<u8>, bdf: Bdf) {
    // Type, length, flags, reserved, enumeration ID (only for IOAPIC, HPET and ACPI devices), start bus, path.
    scopes.extend([SCOPE_PCI_ENDPOINT, SCOPE_LENGTH, 0, 0, 0, bdf.bus(), bdf.device(), bdf.function()]);
}

/// Writes the table with the unit at an address, so that a reader sees the old one or the new one.
///
/// Errors: the file is there and is no DMAR table, or it cannot be written.
pub fn write_table(topology: &Topology, address: u64, file: &Path) -> Outcome<()> {
    refuse_other_files(file).or_exit(Exit::Usage)?;
    // QEMU may run as another user, as it does under libvirt. The table is no secret.
    files::write_as(file, &table(topology, address), Some(0o644)).or_exit(Exit::Usage)
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
    let header = bytes.get(..16).is_some_and(|head| head[1..14].iter().all(|&byte| byte == 0));
    header && usize::from(u16::from_le_bytes([bytes[14], bytes[15]])) == bytes.len() - 12
}

/// A file with the DMAR table of a machine. It follows the unit's BAR.
#[derive(Debug)]
pub struct TableFile<'a> {
    file: Option<&'a Path>,
    topology: &'a Topology,
    address: u64,
    /// The unit was placed since a VMM connected.
    placed: bool,
}

impl<'a> TableFile<'a> {
    /// Keeps the file if it is a table of this machine, else writes a new one. Without a file, only tells the user
    /// where the unit is.
    pub fn open(file: Option<&'a Path>, topology: &'a Topology) -> Outcome<Self> {
        let mut table = Self { file, topology, address: UNKNOWN_ADDRESS, placed: false };
        let Some(path) = file else { return Ok(table) };
        match std::fs::read(path).ok().and_then(|bytes| known_address(topology, &bytes)) {
            Some(address) => table.address = address,
            None => write_table(topology, table.address, path)?,
        }
        Ok(table)
    }

    /// The unit was placed. The first place after a VMM connected is firmware's, and counts: the file is rewritten if
    /// it says another. A guest that moves its BAR later changes nothing here, however often it does.
    pub fn placed(&mut self, address: u64) {
        if std::mem::replace(&mut self.placed, true) {
            tracing::info!("the guest moved the IOMMU's BAR to {address:#x}: add intremap=off to its command line");
            return;
        }
        let Some(file) = self.file else {
            say!("the IOMMU's BAR is at {address:#x}");
            return;
        };
        if address == self.address {
            say!("the IOMMU's BAR is at {address:#x}, as in {}", file.display());
            return;
        }
        match write_table(self.topology, address, file) {
            Ok(()) => {
                self.address = address;
                let file = file.display();
                say!("the IOMMU's BAR is at {address:#x}; {file} had another address and is updated: restart QEMU");
            }
            Err(failure) => say!("the IOMMU's BAR is at {address:#x}, and the table still says another: {failure}"),
        }
    }

    /// A VMM disconnected: the next one's firmware places the unit anew.
    pub fn disconnected(&mut self) {
        self.placed = false;
    }
}

/// The unit's address in `bytes`, if they are a table of this machine.
fn known_address(topology: &Topology, bytes: &[u8]) -> Option<u64> {
    let address = u64::from_le_bytes(bytes.get(20..28)?.try_into().ok()?);
    (address & 0xfff == 0 && table(topology, address) == bytes).then_some(address)
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
        assert_eq!(table(&topology, 0xfebf_f000), by_hand);
    }

    #[test]
    fn an_address_above_4_gib_is_kept_whole() {
        let topology = Topology::parse("t", crate::topology::DEFAULT).unwrap();
        assert_eq!(table(&topology, 0x38_1234_5000)[20..28], 0x38_1234_5000_u64.to_le_bytes());
    }

    #[test]
    fn a_table_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dmar.bin");
        let topology = Topology::parse("t", crate::topology::DEFAULT).unwrap();
        for address in [0xfebf_f000, 0xc000_0000] {
            write_table(&topology, address, &file).unwrap();
            assert_eq!(std::fs::read(&file).unwrap(), table(&topology, address));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
        assert_eq!(write_table(&topology, 0x1000, Path::new("/no/such/f")).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn the_table_follows_the_bar_and_is_kept_from_run_to_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dmar.bin");
        let topology = Topology::parse("t", crate::topology::DEFAULT).unwrap();
        let mut kept = TableFile::open(Some(&file), &topology).unwrap();
        kept.placed(0x38_0000_0000);
        // The guest's kernel moves it, again and again: that is not firmware's doing, and changes nothing.
        (1..100).for_each(|n| kept.placed(0x4000_0000 + (n << 20)));
        assert_eq!(std::fs::read(&file).unwrap(), table(&topology, 0x38_0000_0000));
        assert_eq!(TableFile::open(Some(&file), &topology).unwrap().address, 0x38_0000_0000);
        kept.disconnected();
        kept.placed(0x39_0000_0000);
        assert_eq!(std::fs::read(&file).unwrap(), table(&topology, 0x39_0000_0000), "the next firmware's word counts");
        let other = topology.accelerators[..1].to_vec();
        let other = Topology { accelerators: other, ..topology.clone() };
        assert_eq!(TableFile::open(Some(&file), &other).unwrap().address, UNKNOWN_ADDRESS);
        assert_eq!(
            std::fs::read(&file).unwrap(),
            table(&other, UNKNOWN_ADDRESS),
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
            assert!(write_table(&topology, 0x1000, &file).is_err());
            assert_eq!(std::fs::read_to_string(&file).unwrap(), notes);
        }
        std::fs::write(&file, "").unwrap();
        write_table(&topology, 0x1000, &file).unwrap();
        assert!(write_table(&topology, 0x1000, folder.path()).is_err(), "a folder is no file");
    }
}
