//! The MSI-X table and its pending bits (§7.7.2), as the function's BAR shows them.
use svadev_spec::pcie::msi_x::TABLE_ENTRY_SIZE;

use crate::MsiX;

/// The table as software wrote it, and where its pending bits are. A VMM that emulates the table, as QEMU does, writes
/// none of it here; it does forward reads of the pending bits.
#[derive(Clone, Debug)]
pub struct MsiXTable {
    entries: Box<[u8]>,
    pending_offset: u64,
}

impl MsiXTable {
    /// A table of zeros.
    pub fn new(capability: MsiX) -> Self {
        let bytes = u64::from(capability.vectors) * TABLE_ENTRY_SIZE;
        let bytes = usize::try_from(bytes).expect("a table has at most 32 KiB");
        Self { entries: vec![0; bytes].into(), pending_offset: capability.pending_offset.into() }
    }

    /// Vectors.
    pub fn vectors(&self) -> u64 {
        self.entries.len() as u64 / TABLE_ENTRY_SIZE
    }

    /// Fills `data` from the BAR: the table, the pending bits that `is_pending` tells of each vector, else zero.
    pub fn read(&self, offset: u64, data: &mut [u8], is_pending: impl Fn(u64) -> bool) {
        for (at, byte) in (offset..=u64::MAX).zip(data) {
            *byte = match at.checked_sub(self.pending_offset) {
                None => usize::try_from(at).ok().and_then(|at| self.entries.get(at)).copied().unwrap_or(0),
                Some(n) if n < self.vectors().div_ceil(8) => {
                    let vectors = 8 * n..(8 * n + 8).min(self.vectors());
                    vectors.map(|vector| u8::from(is_pending(vector)) << (vector % 8)).sum()
                }
                Some(_) => 0,
            };
        }
    }

    /// Writes to the BAR. A write that is not wholly in the table is ignored: pending bits are read-only.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(table) = at.checked_add(data.len()).and_then(|end| self.entries.get_mut(at..end)) {
            table.copy_from_slice(data);
        }
    }

    /// The table's bytes, as they are saved.
    pub fn entries(&self) -> &[u8] {
        &self.entries
    }

    /// Goes on with the bytes of a table with as many vectors.
    pub fn restore(&mut self, entries: &[u8]) {
        self.entries.copy_from_slice(entries);
    }

    /// Function reset: the table is zero again.
    pub fn reset(&mut self) {
        self.entries.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> MsiXTable {
        MsiXTable::new(MsiX { vectors: 10, bar: 4, table_offset: 0, pending_offset: 0x1000 })
    }

    #[test]
    fn the_table_reads_back_what_was_written_to_it() {
        let mut table = table();
        table.write(16, &[1, 2, 3, 4]);
        let mut back = [0xff; 4];
        table.read(16, &mut back, |_| true);
        assert_eq!(back, [1, 2, 3, 4]);
        // One byte beyond the table, the pending bits, and an offset that wraps change nothing.
        for offset in [157, 0x1000, u64::MAX] {
            table.write(offset, &[9; 4]);
        }
        assert_eq!(table.entries().iter().filter(|&&byte| byte != 0).count(), 4);
        table.reset();
        assert!(table.entries().iter().all(|&byte| byte == 0));
    }

    #[test]
    fn pending_bits_are_those_of_the_vectors_that_wait() {
        let mut bits = [0xff; 4];
        table().read(0x1000, &mut bits, |vector| vector == 1 || vector == 9);
        assert_eq!(bits, [0b10, 0b10, 0, 0]);
        table().read(0x1000, &mut bits, |_| true);
        assert_eq!(bits, [0xff, 0b11, 0, 0], "there are ten vectors");
        table().read(u64::MAX, &mut bits[..1], |_| true);
        assert_eq!(bits[0], 0);
    }
}
