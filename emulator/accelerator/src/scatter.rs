//! Scatter lists: read once into memory of our own, checked, and walked.
use svadev_spec::device::{Code, MAX_SCATTER_ENTRIES, ScatterEntry};
use zerocopy::{FromZeros, IntoBytes};

use crate::descriptor::{Operand, OperandSpace, check_address};

const MAX_ENTRIES: usize = MAX_SCATTER_ENTRIES as usize;

/// Room for one list.
#[derive(Clone, Debug)]
pub(crate) struct ListBuffer {
    entries: Box<[ScatterEntry]>,
    /// Bytes fetched so far: what was fetched is not read again.
    fetched: usize,
}

impl ListBuffer {
    pub(crate) fn new() -> Self {
        Self { entries: vec![ScatterEntry::new_zeroed(); MAX_ENTRIES].into(), fetched: 0 }
    }
}

/// An operand on its way through its pieces.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    operand: Operand,
    /// The list's entries; `None` for a plain range.
    list: Option<ListBuffer>,
    /// The entry, and the bytes of it that are done; the whole operand is entry 0 of a plain range.
    entry: usize,
    done: u64,
    length: u64,
}

impl Cursor {
    /// At the start of an operand of `length` bytes; `list` if it has one.
    pub(crate) fn new(operand: Operand, length: u64, list: Option<ListBuffer>) -> Self {
        debug_assert_eq!(operand.entries != 0, list.is_some());
        let list = list.map(|buffer| ListBuffer { fetched: 0, ..buffer });
        Self { operand, list, entry: 0, done: 0, length }
    }

    /// What kind of address its pieces have.
    pub(crate) fn space(&self) -> OperandSpace {
        self.operand.space
    }

    /// What kind of address its list has.
    pub(crate) fn list_space(&self) -> OperandSpace {
        self.operand.list_space
    }

    /// Gives the list's room back.
    pub(crate) fn into_buffer(self) -> Option<ListBuffer> {
        self.list
    }

    /// Where the rest of the list is, and room for it: address, bytes. `None` once it is complete, or without a list.
    pub(crate) fn unread(&mut self) -> Option<(u64, &mut [u8])> {
        let count = usize::try_from(self.operand.entries).expect("at most 1024");
        let list = self.list.as_mut()?;
        let room = &mut list.entries[..count].as_mut_bytes()[list.fetched..];
        // No wrap: the descriptor's check covered the whole list.
        (!room.is_empty()).then(|| (self.operand.address + list.fetched as u64, room))
    }

    /// `bytes` of what `unread` offered were filled.
    pub(crate) fn fetched(&mut self, bytes: usize) {
        self.list.as_mut().expect("only lists are fetched").fetched += bytes;
    }

    /// Entries of its list, 0 without one.
    pub(crate) fn list_entries(&self) -> i64 {
        self.operand.entries.into()
    }

    fn entries(&self) -> Option<&[ScatterEntry]> {
        let count = usize::try_from(self.operand.entries).expect("at most 1024");
        self.list.as_ref().map(|list| &list.entries[..count])
    }

    /// Checks a list that was fetched. Plain ranges were checked with their descriptor.
    pub(crate) fn check(&self) -> Result<(), Code> {
        let Some(entries) = self.entries() else { return Ok(()) };
        let mut sum = 0u64;
        for entry in entries {
            if entry.length == 0 {
                return Err(Code::BadList);
            }
            sum = sum.checked_add(entry.length).ok_or(Code::BadList)?;
            check_address(entry.address, entry.length)?;
        }
        if sum == self.length { Ok(()) } else { Err(Code::BadList) }
    }

    /// The piece at the cursor: address of its next byte and bytes left in it. Not past the end.
    pub(crate) fn piece(&self) -> (u64, u64) {
        match self.entries() {
            // Wraps only past the very last byte of the address space, when nothing is left there.
            None => (self.operand.address.wrapping_add(self.done), self.length - self.done),
            Some(entries) => {
                let entry = entries[self.entry];
                (entry.address.wrapping_add(self.done), entry.length - self.done)
            }
        }
    }

    /// `bytes`, at most what `piece` said is left, are done.
    pub(crate) fn advance(&mut self, bytes: u64) {
        let (_, left) = self.piece();
        debug_assert!(bytes <= left);
        if bytes == left && self.list.is_some() {
            self.entry += 1;
            self.done = 0;
        } else {
            self.done += bytes;
        }
    }

    fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        let plain = self.list.is_none().then_some((self.operand.address, self.length));
        let listed = self.entries().unwrap_or(&[]).iter().map(|e| (e.address, e.length));
        plain.into_iter().chain(listed).map(|(start, length)| (start, start + (length - 1)))
    }
}

/// Whether two checked operands share a byte; O(n log n), no allocation: `scratch` has room for a list. Addresses of
/// two kinds are not compared.
pub(crate) fn overlap(a: &Cursor, b: &Cursor, scratch: &mut Vec<(u64, u64)>) -> bool {
    if a.space() != b.space() {
        return false;
    }
    scratch.clear();
    scratch.extend(a.ranges());
    debug_assert!(scratch.len() <= MAX_ENTRIES);
    scratch.sort_unstable();
    // Each range's last byte becomes the largest so far: ranges of one list may overlap each other.
    let mut highest = 0;
    for (_, last) in scratch.iter_mut() {
        highest = highest.max(*last);
        *last = highest;
    }
    b.ranges().any(|(start, last)| {
        let below = scratch.partition_point(|&(s, _)| s <= last);
        below > 0 && scratch[below - 1].1 >= start
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cursor(entries: &[(u64, u64)], length: u64) -> Cursor {
        let (space, list_space) = (OperandSpace::Own, OperandSpace::Own);
        let operand = Operand { address: 0x1000, entries: u32::try_from(entries.len()).unwrap(), space, list_space };
        let mut cursor = Cursor::new(operand, length, Some(ListBuffer::new()));
        let bytes: Vec<u8> = entries.iter().flat_map(|e| [e.0.to_le_bytes(), e.1.to_le_bytes()].concat()).collect();
        let mut done = 0;
        while let Some((address, room)) = cursor.unread() {
            assert_eq!(address, 0x1000 + done as u64);
            let n = room.len().min(24);
            room[..n].copy_from_slice(&bytes[done..done + n]);
            done += n;
            cursor.fetched(n);
        }
        cursor
    }

    #[test]
    fn a_list_is_walked_piece_by_piece() {
        let mut c = cursor(&[(0x10, 3), (0x20, 1)], 4);
        c.check().unwrap();
        assert_eq!(c.piece(), (0x10, 3));
        c.advance(2);
        assert_eq!(c.piece(), (0x12, 1));
        c.advance(1);
        assert_eq!(c.piece(), (0x20, 1));
    }

    #[test]
    fn lists_that_do_not_add_up_are_refused() {
        assert_eq!(cursor(&[(0, 1), (0, 0)], 1).check(), Err(Code::BadList));
        assert_eq!(cursor(&[(0, 1), (0, 2)], 4).check(), Err(Code::BadList));
        assert_eq!(cursor(&[(0, u64::MAX), (0, 2)], 1).check(), Err(Code::BadList));
        assert_eq!(cursor(&[(u64::MAX, 2)], 2).check(), Err(Code::BadAddress));
        assert_eq!(cursor(&[(u64::MAX, 1)], 1).check(), Ok(()));
    }

    proptest! {
        #[test]
        fn overlap_is_what_comparing_all_pairs_says(
            a in prop::collection::vec((0u64..400, 1u64..20), 1..12),
            b in prop::collection::vec((0u64..400, 1u64..20), 1..12),
        ) {
            let slow = a.iter().any(|x| b.iter().any(|y| x.0 < y.0 + y.1 && y.0 < x.0 + x.1));
            let sum = |l: &[(u64, u64)]| l.iter().map(|e| e.1).sum();
            let mut scratch = Vec::new();
            prop_assert_eq!(overlap(&cursor(&a, sum(&a)), &cursor(&b, sum(&b)), &mut scratch), slow);
        }
    }
}
