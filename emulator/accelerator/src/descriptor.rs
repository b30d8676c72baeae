//! Descriptors, checked: what a guest wrote becomes a typed piece of work or the [`Code`] that says what is wrong.
//!
//! A descriptor is copied out of the ring once and checked here, in the copy: what the guest does to the ring afterwards
//! changes nothing.
use svadev_fabric::Pasid;
use svadev_mutation::mutant;
use svadev_spec::device::{
    Code, Descriptor, DescriptorFlags, DescriptorPasid, MAX_LENGTH, MAX_SCATTER_ENTRIES, OperandSpaces, ScatterEntry,
    opcode, operand_space,
};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Nop,
    Drain,
    Copy,
    Fill { pattern: u64 },
    Compare,
    Crc32c { seed: u32 },
    Prefetch { write: bool },
    Drop,
}

/// An operand: a range of addresses, or a list of such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    /// Of the first byte, or of the list.
    pub(crate) address: u64,
    /// Entries of the list; 0 without one.
    pub(crate) entries: u32,
    /// What kind of address it is, or those in its list are.
    pub(crate) space: OperandSpace,
    /// What kind of address its list has.
    pub(crate) list_space: OperandSpace,
}

/// What kind of address an operand has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OperandSpace {
    /// The descriptor's own: a process's, or the driver's DMA.
    #[default]
    Own,
    /// The driver's DMA.
    Dma,
    /// Device memory.
    Device,
}

impl OperandSpace {
    fn of(code: u8) -> Result<Self, Code> {
        match code {
            operand_space::VIRTUAL => Ok(Self::Own),
            operand_space::DMA => Ok(Self::Dma),
            operand_space::DEVICE_MEMORY => Ok(Self::Device),
            _ => Err(Code::BadReserved),
        }
    }
}

/// A descriptor that is in order, as far as it can be told without its lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) operation: Operation,
    pub(crate) flags: DescriptorFlags,
    pub(crate) cookie: u64,
    /// Whose addresses: a process's, or the driver's own.
    pub(crate) space: Option<Pasid>,
    pub(crate) src: Option<Operand>,
    pub(crate) dst: Option<Operand>,
    pub(crate) length: u64,
}

/// Whose addresses a descriptor of a queue holds; `None` where the field is malformed.
///
/// A user queue's descriptors belong to the queue's process, whatever else is wrong with them.
pub(crate) fn space_of(user: Option<Pasid>, descriptor: &Descriptor) -> Option<Option<Pasid>> {
    let field = descriptor.pasid;
    match user {
        Some(pasid) => (field == DescriptorPasid::new()).then_some(Some(pasid)),
        None if field.valid() => {
            let clean = field == DescriptorPasid::new().with_valid(true).with_pasid(field.pasid());
            clean.then(|| Some(Pasid::from_low_bits(field.pasid().into())))
        }
        None => (field == DescriptorPasid::new()).then_some(None),
    }
}

/// Which of the optional parts an opcode uses.
struct Uses {
    src: bool,
    dst: bool,
    operand: bool,
}

impl Work {
    /// Checks a descriptor of a queue that belongs to `user`, or of a kernel queue.
    pub(crate) fn check(user: Option<Pasid>, d: &Descriptor) -> Result<Self, Code> {
        let (operation, uses) = operation(d)?;
        let flags = check_flags(d.flags, &operation, &uses)?;
        let space = space_of(user, d).ok_or(Code::BadReserved)?;
        check_unused(d, &operation, &uses, flags)?;
        let has_operands = uses.src || uses.dst;
        if has_operands != (1..=MAX_LENGTH).contains(&d.length) {
            return Err(Code::BadLength);
        }
        let [src_space, dst_space, list_space] = check_spaces(user, d, &uses, flags)?;
        let side = |used: bool, list: bool, address, entries, space| {
            used.then_some(Operand { address, entries: if list { entries } else { 0 }, space, list_space })
        };
        let work = Self {
            operation,
            flags,
            cookie: d.cookie,
            space,
            src: side(uses.src, flags.contains(DescriptorFlags::SRC_LIST), d.src, d.src_entries, src_space),
            dst: side(uses.dst, flags.contains(DescriptorFlags::DST_LIST), d.dst, d.dst_entries, dst_space),
            length: d.length,
        };
        check_lists(flags, d)?;
        for operand in [work.src, work.dst].into_iter().flatten() {
            let bytes = match operand.entries {
                0 => d.length,
                entries => u64::from(entries) * size_of::<ScatterEntry>() as u64,
            };
            check_address(operand.address, bytes)?;
        }
        if let (Operation::Copy, Some(src), Some(dst)) = (operation, work.src, work.dst)
            && (src.entries, dst.entries, src.space) == (0, 0, dst.space)
            && src.address.abs_diff(dst.address) < d.length
        {
            return Err(Code::Overlap);
        }
        Ok(work)
    }
}

/// A COPY without lists that [`Work::check`] finds in order: what most descriptors of a busy queue are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlainCopy {
    pub(crate) flags: DescriptorFlags,
    pub(crate) space: Option<Pasid>,
    pub(crate) src: u64,
    pub(crate) dst: u64,
    /// Bytes, at least 1.
    pub(crate) length: usize,
}

impl PlainCopy {
    /// `None` for every other descriptor, and for lengths above `most`. The same rules as those of [`Work::check`] (a test
    /// compares the two), asked all at once.
    #[inline]
    pub(crate) fn of(user: Option<Pasid>, d: &Descriptor, most: usize) -> Option<Self> {
        const FLAGS: DescriptorFlags =
            DescriptorFlags::INTERRUPT.union(DescriptorFlags::FENCE).union(DescriptorFlags::STOP_ON_FAULT);
        let length = usize::try_from(d.length).ok().filter(|length| (1..=most).contains(length))?;
        let unused =
            u64::from(d.spaces.into_bits()) | u64::from(d.src_entries | d.dst_entries) | d.operand | d.reserved1;
        let beyond = |address: u64| address.checked_add(d.length - 1).is_none();
        let plain = d.opcode == opcode::COPY
            && d.flags & !FLAGS.bits() == 0
            && unused == 0
            && !beyond(d.src)
            && !beyond(d.dst)
            && d.src.abs_diff(d.dst) >= d.length;
        let space = space_of(user, d)?;
        let flags = DescriptorFlags::from_bits_truncate(d.flags);
        plain.then_some(Self { flags, space, src: d.src, dst: d.dst, length })
    }
}

fn operation(d: &Descriptor) -> Result<(Operation, Uses), Code> {
    let uses = |src, dst, operand| Uses { src, dst, operand };
    Ok(match d.opcode {
        opcode::NOP => (Operation::Nop, uses(false, false, false)),
        opcode::DRAIN => (Operation::Drain, uses(false, false, false)),
        opcode::COPY => (Operation::Copy, uses(true, true, false)),
        opcode::FILL => (Operation::Fill { pattern: d.operand }, uses(false, true, true)),
        opcode::COMPARE => (Operation::Compare, uses(true, true, false)),
        opcode::CRC32C => {
            // A CRC has 32 bits; the field's others are reserved for this opcode (checked with the unused fields).
            let seed = u32::try_from(d.operand & u64::from(u32::MAX)).expect("masked to 32 bits");
            (Operation::Crc32c { seed }, uses(true, false, true))
        }
        // Only bit 0 means anything; the others are checked with the unused fields.
        opcode::PREFETCH => (Operation::Prefetch { write: d.operand & 1 != 0 }, uses(true, false, true)),
        opcode::DROP => (Operation::Drop, uses(true, false, false)),
        _ => return Err(Code::BadOpcode),
    })
}

fn check_flags(raw: u8, operation: &Operation, uses: &Uses) -> Result<DescriptorFlags, Code> {
    let flags = DescriptorFlags::from_bits(raw).ok_or(Code::BadFlags)?;
    let mut useless = DescriptorFlags::empty();
    useless.set(DescriptorFlags::SRC_LIST, !uses.src);
    useless.set(DescriptorFlags::DST_LIST, !uses.dst);
    useless.set(DescriptorFlags::STOP_ON_FAULT, matches!(operation, Operation::Drop) || (!uses.src && !uses.dst));
    if flags.intersects(useless) { Err(Code::BadFlags) } else { Ok(flags) }
}

fn check_unused(d: &Descriptor, operation: &Operation, uses: &Uses, flags: DescriptorFlags) -> Result<(), Code> {
    let clean = d.reserved1 == 0
        && (uses.src || d.src == 0)
        && (uses.dst || d.dst == 0)
        && (uses.operand || d.operand == 0)
        && d.operand <= highest_operand(operation)
        && (flags.contains(DescriptorFlags::SRC_LIST) || d.src_entries == 0)
        && (flags.contains(DescriptorFlags::DST_LIST) || d.dst_entries == 0);
    if clean { Ok(()) } else { Err(Code::BadReserved) }
}

/// The spaces of source, destination and lists. Only a kernel queue may name one, and only for what the opcode has.
fn check_spaces(
    user: Option<Pasid>,
    d: &Descriptor,
    uses: &Uses,
    flags: DescriptorFlags,
) -> Result<[OperandSpace; 3], Code> {
    let spaces = d.spaces;
    let clean = OperandSpaces::new().with_src(spaces.src()).with_dst(spaces.dst()).with_list(spaces.list());
    let lists = flags.intersects(DescriptorFlags::SRC_LIST | DescriptorFlags::DST_LIST);
    let unused = (!uses.src && spaces.src() != 0) || (!uses.dst && spaces.dst() != 0) || (!lists && spaces.list() != 0);
    let foreign = user.is_some() && spaces != OperandSpaces::new() && !mutant!(UserQueueNamesSpaces);
    if spaces != clean || unused || foreign {
        return Err(Code::BadReserved);
    }
    Ok([OperandSpace::of(spaces.src())?, OperandSpace::of(spaces.dst())?, OperandSpace::of(spaces.list())?])
}

fn highest_operand(operation: &Operation) -> u64 {
    match operation {
        Operation::Crc32c { .. } => u32::MAX.into(),
        Operation::Prefetch { .. } => 1,
        _ => u64::MAX,
    }
}

fn check_lists(flags: DescriptorFlags, d: &Descriptor) -> Result<(), Code> {
    let bad = |flag, entries| flags.contains(flag) && !(1..=MAX_SCATTER_ENTRIES).contains(&entries);
    if bad(DescriptorFlags::SRC_LIST, d.src_entries) || bad(DescriptorFlags::DST_LIST, d.dst_entries) {
        return Err(Code::BadList);
    }
    Ok(())
}

/// A range must end at or below the top of the address space.
pub(crate) fn check_address(address: u64, bytes: u64) -> Result<(), Code> {
    // The last byte counts: a range may end with the very last byte there is.
    if bytes == 0 || address.checked_add(bytes - 1).is_some() { Ok(()) } else { Err(Code::BadAddress) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;

    fn copy() -> Descriptor {
        Descriptor { opcode: opcode::COPY, src: 0x1000, dst: 0x2000, length: 0x1000, ..Default::default() }
    }

    #[test]
    fn each_field_that_is_wrong_has_its_code() {
        use DescriptorFlags as F;
        let list =
            |flag: F, src_entries, dst_entries| Descriptor { flags: flag.bits(), src_entries, dst_entries, ..copy() };
        let nop = Descriptor::default();
        let crc = Descriptor { opcode: opcode::CRC32C, dst: 0, ..copy() };
        let prefetch = Descriptor { opcode: opcode::PREFETCH, ..crc };
        let drop = Descriptor { opcode: opcode::DROP, ..crc };
        for (descriptor, code) in [
            (Descriptor { opcode: 8, ..copy() }, Code::BadOpcode),
            (Descriptor { operand: 2, ..prefetch }, Code::BadReserved),
            (Descriptor { operand: 1, ..drop }, Code::BadReserved),
            (Descriptor { dst: 1, ..prefetch }, Code::BadReserved),
            (Descriptor { length: 0, ..drop }, Code::BadLength),
            (Descriptor { flags: F::STOP_ON_FAULT.bits(), ..drop }, Code::BadFlags),
            (Descriptor { opcode: 255, ..copy() }, Code::BadOpcode),
            (Descriptor { flags: 0x20, ..copy() }, Code::BadFlags),
            (Descriptor { flags: F::STOP_ON_FAULT.bits(), ..nop }, Code::BadFlags),
            (Descriptor { flags: F::DST_LIST.bits(), dst_entries: 1, ..crc }, Code::BadFlags),
            (Descriptor { spaces: OperandSpaces::from_bits(3), ..copy() }, Code::BadReserved),
            (Descriptor { spaces: OperandSpaces::from_bits(1 << 6), ..copy() }, Code::BadReserved),
            (Descriptor { spaces: OperandSpaces::new().with_list(1), ..copy() }, Code::BadReserved),
            (Descriptor { spaces: OperandSpaces::new().with_src(1), ..nop }, Code::BadReserved),
            (Descriptor { reserved1: 1, ..copy() }, Code::BadReserved),
            (Descriptor { operand: 1, ..copy() }, Code::BadReserved),
            (Descriptor { src: 1, ..nop }, Code::BadReserved),
            (Descriptor { dst: 1, ..crc }, Code::BadReserved),
            (Descriptor { operand: 1 << 32, ..crc }, Code::BadReserved),
            (Descriptor { pasid: DescriptorPasid::new().with_pasid(1), ..copy() }, Code::BadReserved),
            (Descriptor { pasid: DescriptorPasid::from_bits(1 << 20 | 1 << 31), ..copy() }, Code::BadReserved),
            (list(F::empty(), 1, 0), Code::BadReserved),
            (Descriptor { length: 0, ..copy() }, Code::BadLength),
            (Descriptor { length: MAX_LENGTH + 1, ..copy() }, Code::BadLength),
            (Descriptor { length: 1, ..nop }, Code::BadLength),
            (list(F::SRC_LIST, 0, 0), Code::BadList),
            (list(F::DST_LIST, 0, MAX_SCATTER_ENTRIES + 1), Code::BadList),
            (Descriptor { src: u64::MAX, ..copy() }, Code::BadAddress),
            (Descriptor { src: u64::MAX - 14, ..list(F::SRC_LIST, 1, 0) }, Code::BadAddress),
            (Descriptor { dst: 0x1fff, ..copy() }, Code::Overlap),
            (Descriptor { dst: 0x0001, ..copy() }, Code::Overlap),
            (Descriptor { dst: 0x1000, ..copy() }, Code::Overlap),
        ] {
            assert_eq!(Work::check(None, &descriptor), Err(code), "{descriptor:x?}");
        }
    }

    #[test]
    fn the_address_space_belongs_to_the_queue_or_to_the_descriptor() {
        let pasid = Pasid::new(7).unwrap();
        let named = Descriptor { pasid: DescriptorPasid::new().with_pasid(7).with_valid(true), ..copy() };
        assert_eq!(Work::check(None, &named).unwrap().space, Some(pasid));
        assert_eq!(Work::check(None, &copy()).unwrap().space, None);
        assert_eq!(Work::check(Some(pasid), &copy()).unwrap().space, Some(pasid));
        assert_eq!(Work::check(Some(pasid), &named), Err(Code::BadReserved), "a user queue may not name a PASID");
        let spaces = Descriptor { spaces: OperandSpaces::new().with_src(1).with_dst(2), ..copy() };
        let work = Work::check(None, &spaces).unwrap();
        assert_eq!(
            (work.src.unwrap().space, work.dst.unwrap().space),
            (OperandSpace::Dma, OperandSpace::Device),
            "one operand each"
        );
        assert_eq!(Work::check(Some(pasid), &spaces), Err(Code::BadReserved), "nor an address of the driver's");
        let same = Descriptor { dst: 0x1000, ..spaces };
        assert!(Work::check(None, &same).is_ok(), "equal addresses of two kinds are no overlap");
    }

    proptest! {
        /// The short check and the long one agree on every descriptor: on those that are nearly in order, too.
        #[test]
        fn a_plain_copy_is_what_the_long_check_finds_in_order(
            words in prop::array::uniform8(prop_oneof![4 => Just(0u64), 1 => any::<u64>(), 1 => 0u64..0x3000]),
            (opcode, flags) in (prop_oneof![4 => Just(opcode::COPY), 1 => 0u8..9], prop_oneof![4 => 0u8..8, 1 => any::<u8>()]),
            (src, dst) in (prop_oneof![4 => 0u64..0x8000, 1 => u64::MAX - 0x1000..=u64::MAX], 0u64..0x8000),
            length in prop_oneof![4 => 0u64..0x2100, 1 => any::<u64>()],
            spoilt in prop::option::of(0usize..8),
            user in any::<bool>(),
        ) {
            let user = user.then(|| Pasid::new(7).unwrap());
            let mut whole = Descriptor { opcode, flags, src, dst, length, ..Descriptor::default() };
            if let Some(at) = spoilt {
                whole.as_mut_bytes()[8 * at..][..8].copy_from_slice(&words[at].to_le_bytes());
            }
            let most = 0x2000;
            let long = Work::check(user, &whole).ok().and_then(|work| {
                let own = |o: &Operand| o.entries == 0 && o.space == OperandSpace::Own;
                let operand = |operand: Option<Operand>| operand.filter(own).map(|o| o.address);
                let length = usize::try_from(work.length).ok().filter(|&length| length <= most)?;
                (work.operation == Operation::Copy).then_some(PlainCopy {
                    flags: work.flags,
                    space: work.space,
                    src: operand(work.src)?,
                    dst: operand(work.dst)?,
                    length,
                })
            });
            prop_assert_eq!(PlainCopy::of(user, &whole, most), long);
        }
    }

    #[test]
    fn the_last_byte_of_the_address_space_is_one() {
        let top = Descriptor { src: u64::MAX - 0xfff, ..copy() };
        assert!(Work::check(None, &top).is_ok());
        let apart = Descriptor { dst: 0x2000, ..copy() };
        assert!(Work::check(None, &apart).is_ok(), "touching is not overlapping");
    }
}
