//! A slow and obvious translation of requests, straight from the specification's text, to compare the unit with. It
//! shares types with the unit and no code: entries are read as numbers, rights are worked out from the whole path,
//! nothing is cached.
use std::collections::BTreeMap;

use svadev_fabric::{Access, Bdf};

use crate::{FaultReason, UnitConfig};

/// Bits 51:12 of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A successful translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Page {
    pub(super) gpa: u64,
    pub(super) size_log2: u8,
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) execute: bool,
}

/// How memory answers the model: the word at an address, or nothing outside memory. The level is that of a paging
/// entry, 0 for others.
pub(super) type Load<'a> = dyn FnMut(u64, u8) -> Option<u64> + 'a;

pub(super) struct Model<'a> {
    pub(super) config: &'a UnitConfig,
    /// RTADDR.
    pub(super) root: u64,
    pub(super) load: &'a mut Load<'a>,
    /// Accessed and dirty bits that were set.
    pub(super) updates: BTreeMap<u64, u64>,
    /// FPD of one of the entries on the way, as far as the request came (§7.1.3).
    pub(super) fault_processing_disable: bool,
}

/// A fault record as the specification's text fills it (§11.4.7.6): both halves.
pub(super) fn fault_record(asked: &Asked, reason: FaultReason) -> (u64, u64) {
    let Access { read, write, execute, privileged } = asked.access;
    // T1 and T2: 00 is a write, 10 a read, 11 an AtomicOp. A translation request for both is one for a write.
    let (type1, type2) = match (read, write) {
        (true, true) if !asked.ats => (1, 1),
        (_, true) => (0, 0),
        _ => (1, 0),
    };
    let with_pasid = u64::from(asked.pasid.is_some());
    let high = u64::from(asked.requester.0)
        | type2 << 28
        | u64::from(privileged) << 29
        | u64::from(execute) << 30
        | with_pasid << 31
        | u64::from(reason.code()) << 32
        | u64::from(asked.pasid.unwrap_or(0)) << 40
        | u64::from(asked.ats) << 60
        | type1 << 62
        | 1 << 63;
    (asked.iova & !0xfff, high)
}

/// A request as the model sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) requester: Bdf,
    pub(super) pasid: Option<u32>,
    pub(super) iova: u64,
    pub(super) access: Access,
    /// A translation request demands no right.
    pub(super) ats: bool,
}

/// What a walk must find, and what it is for.
#[derive(Clone, Copy)]
struct Need {
    read: bool,
    write: bool,
    execute: bool,
    privileged: bool,
    wants_execute: bool,
    may_write: bool,
}

/// Fields of a PASID table entry (§9.6).
#[derive(Default)]
struct Entry {
    first_root: u64,
    first_levels: u8,
    second_root: u64,
    second_levels: u8,
    second_marks: bool,
    snoop: bool,
    sre: bool,
    ere: bool,
    wpe: bool,
    eafe: bool,
}

fn bit(word: u64, bit: u32) -> bool {
    word >> bit & 1 == 1
}

/// §3.14: 0xfeex_xxxx belongs to interrupts. A large page around it is served in small ones.
fn beside_interrupts(page: Page, iova: u64) -> Option<Page> {
    let exact = page.gpa + iova % (1 << page.size_log2);
    if exact >> 20 == 0xfee {
        return None;
    }
    let overlaps = (page.gpa..=page.gpa + ((1 << page.size_log2) - 1)).contains(&0xfee0_0000);
    Some(if overlaps { Page { gpa: exact & !0xfff, size_log2: 12, ..page } } else { page })
}

/// Bits `high` to `low`.
fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & (u64::MAX >> (63 - (high - low)))
}

impl<'a> Model<'a> {
    pub(super) fn new(config: &'a UnitConfig, root: u64, load: &'a mut Load<'a>) -> Self {
        Self { config, root, load, updates: BTreeMap::new(), fault_processing_disable: false }
    }

    fn read(&mut self, at: u64, level: u8) -> Option<u64> {
        if let Some(&updated) = self.updates.get(&at) {
            return Some(updated);
        }
        (self.load)(at, level)
    }

    /// Address bits from the host address width up to 51 (or 63, where the field goes so far) are reserved.
    fn beyond_host(&self, address: u64) -> bool {
        address >> self.config.host_address_width != 0
    }

    pub(super) fn translate(&mut self, asked: &Asked) -> Result<Page, FaultReason> {
        // TTM, §11.4.5.
        match bits(self.root, 11, 10) {
            0 => self.translate_legacy(asked),
            1 => self.translate_scalable(asked),
            _ => Err(FaultReason::RootTableMode),
        }
    }

    /// §3.4.2, §9.1, §9.3.
    fn translate_legacy(&mut self, asked: &Asked) -> Result<Page, FaultReason> {
        use FaultReason as F;
        let Asked { requester, pasid, iova, access, ats } = *asked;
        if pasid.is_some() {
            return Err(F::PasidInLegacyMode);
        }
        let at = (self.root & !0xfff) + 16 * u64::from(requester.bus());
        let root = self.read(at, 0).ok_or(F::LegacyRootAccess)?;
        if !bit(root, 0) {
            return Err(F::LegacyRootNotPresent);
        }
        let upper = self.read(at + 8, 0).ok_or(F::LegacyRootAccess)?;
        if bits(root, 11, 1) != 0 || upper != 0 || self.beyond_host(root & !0xfff) {
            return Err(F::LegacyRootReserved);
        }
        let at = (root & !0xfff) + 16 * u64::from(requester.devfn());
        let c0 = self.read(at, 0).ok_or(F::LegacyContextAccess)?;
        self.fault_processing_disable = bit(c0, 1);
        if !bit(c0, 0) {
            return Err(F::LegacyContextNotPresent);
        }
        let c1 = self.read(at + 8, 0).ok_or(F::LegacyContextAccess)?;
        if bits(c0, 11, 4) != 0 || bit(c1, 7) || bits(c1, 63, 24) != 0 || self.beyond_host(c0 & !0xfff) {
            return Err(F::LegacyContextReserved);
        }
        let (kind, width) = (bits(c0, 3, 2), bits(c1, 2, 0));
        let widest = if self.config.levels5 { 3 } else { 2 };
        if kind == 3 || (kind != 2 && !(1..=widest).contains(&width)) {
            return Err(F::LegacyContextInvalid);
        }
        if ats && kind != 1 {
            return Err(F::LegacyContextBlocks);
        }
        let page = if kind == 2 {
            if self.beyond_host(iova) {
                return Err(F::LegacyAddressTooWide);
            }
            Page { gpa: iova - iova % 0x20_0000, size_log2: 21, read: true, write: true, execute: false }
        } else {
            let (read, write) = (access.read && !ats, access.write && !ats);
            let may_write = access.write;
            let need = Need { read, write, execute: false, privileged: false, wants_execute: false, may_write };
            let entry = Entry {
                second_root: c0 & !0xfff,
                second_levels: if width == 1 { 3 } else { 2 + u8::try_from(width).unwrap() },
                ..Entry::default()
            };
            let page = self.second_stage(&entry, iova, need).map_err(|reason| match reason {
                F::SecondStagePointer | F::SecondStageAccess => F::LegacySecondStageAccess,
                F::SecondStageReserved => F::LegacySecondStageReserved,
                F::AddressTooWide => F::LegacyAddressTooWide,
                F::SecondStageNotPresent if write => F::LegacyNoWrite,
                F::NoWrite => F::LegacyNoWrite,
                F::SecondStageNotPresent | F::NoRead => F::LegacyNoRead,
                other => unreachable!("{other:?} in legacy mode"),
            })?;
            Page { write: page.write && may_write, execute: false, ..page }
        };
        beside_interrupts(page, iova).ok_or(F::LegacyInterruptAddress)
    }

    fn translate_scalable(&mut self, asked: &Asked) -> Result<Page, FaultReason> {
        use FaultReason as F;
        let Asked { requester, pasid, iova, access, ats } = *asked;
        // Root entry, §9.2.
        let half = if requester.devfn() >= 128 { 8 } else { 0 };
        let root = self.read((self.root & !0xfff) + 16 * u64::from(requester.bus()) + half, 0).ok_or(F::RootAccess)?;
        if !bit(root, 0) {
            return Err(F::RootNotPresent);
        }
        if bits(root, 11, 1) != 0 || self.beyond_host(root & !0xfff) {
            return Err(F::RootReserved);
        }
        // Context entry, §9.4.
        let at = (root & !0xfff) + 32 * u64::from(requester.devfn() % 128);
        let c0 = self.read(at, 0).ok_or(F::ContextAccess)?;
        self.fault_processing_disable = bit(c0, 1);
        if !bit(c0, 0) {
            return Err(F::ContextNotPresent);
        }
        let c1 = self.read(at + 8, 0).ok_or(F::ContextAccess)?;
        let c23 = self.read(at + 16, 0).ok_or(F::ContextAccess)? | self.read(at + 24, 0).ok_or(F::ContextAccess)?;
        if bits(c0, 8, 5) != 0
            || self.beyond_host(c0 & !0xfff)
            || bits(c1, 63, 21) != 0
            || c23 != 0
            || (bit(c1, 20) && !self.config.supervisor_requests)
            || (bit(c0, 4) && !self.config.page_requests)
        {
            return Err(F::ContextReserved);
        }
        if pasid.is_some() && !bit(c0, 3) {
            return Err(F::PasidDisabled);
        }
        if ats && !bit(c0, 2) {
            return Err(F::DeviceTlbDisabled);
        }
        let (number, privileged, too_large) = match pasid {
            Some(pasid) => (u64::from(pasid), access.privileged, F::PasidTooLarge),
            None => (bits(c1, 19, 0), bit(c1, 20), F::RidPasidInvalid),
        };
        if number >= 64 << (bits(c0, 11, 9) + 7) || number >= 1 << self.config.max_pasid_bits {
            return Err(too_large);
        }
        // PASID directory entry, §9.5.
        let directory = self.read((c0 & !0xfff) + 8 * (number / 64), 0).ok_or(F::PasidDirectoryAccess)?;
        self.fault_processing_disable |= bit(directory, 1);
        if !bit(directory, 0) {
            return Err(F::PasidDirectoryNotPresent);
        }
        if bits(directory, 11, 2) != 0 || self.beyond_host(directory & !0xfff) {
            return Err(F::PasidDirectoryReserved);
        }
        // PASID table entry, §9.6.
        let at = (directory & !0xfff) + 64 * (number % 64);
        let p0 = self.read(at, 0).ok_or(F::PasidTableAccess)?;
        self.fault_processing_disable |= bit(p0, 1);
        if !bit(p0, 0) {
            return Err(F::PasidTableNotPresent);
        }
        let p1 = self.read(at + 8, 0).ok_or(F::PasidTableAccess)?;
        let p2 = self.read(at + 16, 0).ok_or(F::PasidTableAccess)?;
        let mut others = 0;
        for word in 3..8 {
            others |= self.read(at + 8 * word, 0).ok_or(F::PasidTableAccess)?;
        }
        if others != 0 {
            return Err(F::PasidTableReserved);
        }
        let wants_execute = access.execute && pasid.is_some();
        let need = Need {
            read: access.read && !ats,
            write: access.write && !ats,
            execute: wants_execute && !ats,
            privileged,
            wants_execute,
            may_write: access.write,
        };
        let page = self.by_entry(p0, p1, p2, iova, need)?;
        // No Write takes the right to write away where dirty would have to be set for it; pass-through has no dirty bit
        // (§3.9).
        let write = page.write && (need.may_write || bits(p0, 8, 6) == 4);
        Ok(Page { write, execute: page.execute && wants_execute, ..page })
    }

    fn by_entry(&mut self, p0: u64, p1: u64, p2: u64, iova: u64, need: Need) -> Result<Page, FaultReason> {
        use FaultReason as F;
        let config = self.config;
        if bit(p0, 5)
            || bits(p0, 11, 10) != 0
            || bits(p1, 22, 16) != 0
            || bits(p2, 11, 8) != 0
            || (bit(p2, 0) && !config.supervisor_requests)
            || (bit(p2, 1) && !config.execute_requests)
        {
            return Err(F::PasidTableReserved);
        }
        let kind = bits(p0, 8, 6);
        let (first, second) = (kind == 1 || kind == 3, kind == 2 || kind == 3);
        if !(1..=4).contains(&kind) || (kind == 3 && !config.nested) || (first && !config.first_stage) {
            return Err(F::PasidTableInvalid);
        }
        if first && self.beyond_host(p2 & !0xfff) {
            return Err(F::PasidTableReserved);
        }
        let five = u64::from(config.levels5);
        if first && bits(p2, 3, 2) > five {
            return Err(F::PasidTableInvalid);
        }
        if second && self.beyond_host(p0 & !0xfff) {
            return Err(F::PasidTableReserved);
        }
        // 39, 48 and, with five levels, 57 bits.
        if second && !(1..=2 + five).contains(&bits(p0, 4, 2)) {
            return Err(F::PasidTableInvalid);
        }
        let entry = Entry {
            first_root: p2 & !0xfff,
            first_levels: if bits(p2, 3, 2) == 1 { 5 } else { 4 },
            second_root: p0 & !0xfff,
            second_levels: match bits(p0, 4, 2) {
                1 => 3,
                2 => 4,
                _ => 5,
            },
            second_marks: bit(p0, 9),
            snoop: bit(p1, 23),
            sre: bit(p2, 0),
            ere: bit(p2, 1),
            wpe: bit(p2, 4),
            eafe: bit(p2, 7),
        };
        let page = match kind {
            1 => self.first_stage(&entry, iova, need, false)?,
            2 => self.second_stage(&entry, iova, need)?,
            3 => {
                let outer = self.first_stage(&entry, iova, need, true)?;
                let address = outer.gpa + iova % (1 << outer.size_log2);
                let inner =
                    self.second_stage(&entry, address, Need { may_write: need.may_write && outer.write, ..need })?;
                let size_log2 = outer.size_log2.min(inner.size_log2);
                let exact = inner.gpa + address % (1 << inner.size_log2);
                Page {
                    gpa: exact - exact % (1 << size_log2),
                    size_log2,
                    read: inner.read,
                    write: outer.write && inner.write,
                    execute: outer.execute,
                }
            }
            _ if self.beyond_host(iova) => return Err(F::AddressBeyondHost),
            _ => Page { gpa: iova - iova % 0x20_0000, size_log2: 21, read: true, write: true, execute: false },
        };
        beside_interrupts(page, iova).ok_or(F::InterruptAddress)
    }

    /// §3.6.
    fn first_stage(&mut self, entry: &Entry, iova: u64, need: Need, nested: bool) -> Result<Page, FaultReason> {
        use FaultReason as F;
        if need.privileged && !entry.sre {
            return Err(F::SupervisorDisabled);
        }
        if need.wants_execute && !entry.ere {
            return Err(F::ExecuteDisabled);
        }
        let sign = 9 * u32::from(entry.first_levels) + 11;
        if iova >> sign != 0 && iova >> sign != u64::MAX >> sign {
            return Err(F::NotCanonical);
        }
        let mut path = Vec::new();
        let mut table = entry.first_root;
        for level in (1..=entry.first_levels).rev() {
            let top = level == entry.first_levels;
            let shift = 12 + 9 * (level - 1);
            let named = table + 8 * bits(iova, u32::from(shift) + 8, shift.into());
            let at = if nested { self.first_stage_entry(entry, named, false, top)? } else { named };
            let raw = self.read(at, level).ok_or(if top { F::FirstStagePointer } else { F::FirstStageAccess })?;
            if !bit(raw, 0) {
                return Err(F::FirstStageNotPresent);
            }
            // §9.7: PS is reserved above level 3 and without 1 GiB pages at level 3; in large pages, the address below
            // the page but PAT.
            let large = level > 1 && bit(raw, 7);
            let reserved = match level {
                2 if large => bits(raw, 20, 13) != 0,
                3 if large => !self.config.pages_1gib || bits(raw, 29, 13) != 0,
                _ => large,
            };
            if reserved || self.beyond_host(raw & ADDRESS) {
                return Err(F::FirstStageReserved);
            }
            path.push(raw);
            let mut marked = raw | 1 << 5 | if entry.eafe { 1 << 10 } else { 0 };
            let leaf = level == 1 || large;
            let user = path.iter().all(|&e| bit(e, 2));
            let write = path.iter().all(|&e| bit(e, 1)) || (need.privileged && !entry.wpe);
            let execute = !path.iter().any(|&e| bit(e, 63));
            if leaf {
                if !user && !need.privileged {
                    return Err(F::UserToSupervisor);
                }
                if need.write && !write {
                    return Err(F::NoWrite);
                }
                if need.execute && !execute {
                    return Err(F::NoExecute);
                }
                if need.may_write && write {
                    marked |= 1 << 6;
                }
            }
            if marked != raw {
                if !entry.snoop {
                    return Err(F::FirstStageUpdateNotSnooped);
                }
                let at = if nested { self.first_stage_entry(entry, named, true, false)? } else { at };
                // Where tables point to themselves, that was another mark in this very word.
                let now = self.read(at, level).unwrap_or(raw);
                self.updates.insert(at, now | (marked & !raw));
            }
            if leaf {
                let gpa = raw & ADDRESS & !((1 << shift) - 1);
                return Ok(Page { gpa, size_log2: shift, read: true, write, execute: execute && entry.ere });
            }
            table = raw & ADDRESS;
        }
        unreachable!("level 1 is a leaf")
    }

    /// §3.8: where a first-stage entry is in memory, in nested translation.
    fn first_stage_entry(&mut self, entry: &Entry, at: u64, write: bool, top: bool) -> Result<u64, FaultReason> {
        use FaultReason as F;
        let need =
            Need { read: true, write, execute: false, privileged: false, wants_execute: false, may_write: write };
        match self.second_stage(entry, at, need) {
            Ok(page) => Ok(page.gpa + at % (1 << page.size_log2)),
            Err(F::AddressTooWide) => Err(F::NestedEntryAddressTooWide),
            Err(F::NoRead) => Err(if top { F::NestedTopEntryNoRead } else { F::NestedEntryNoRead }),
            Err(F::NoWrite) => Err(F::NestedEntryNoWrite),
            Err(other) => Err(other),
        }
    }

    /// §3.7.
    fn second_stage(&mut self, entry: &Entry, address: u64, need: Need) -> Result<Page, FaultReason> {
        use FaultReason as F;
        let guest_width = if self.config.levels5 { 57 } else { 48 };
        if address >> (12 + 9 * u32::from(entry.second_levels)).min(guest_width) != 0 {
            return Err(F::AddressTooWide);
        }
        let mut path = Vec::new();
        let mut table = entry.second_root;
        for level in (1..=entry.second_levels).rev() {
            let top = level == entry.second_levels;
            let shift = 12 + 9 * (level - 1);
            let at = table + 8 * bits(address, u32::from(shift) + 8, shift.into());
            let raw = self.read(at, level).ok_or(if top { F::SecondStagePointer } else { F::SecondStageAccess })?;
            if bits(raw, 1, 0) == 0 {
                return Err(F::SecondStageNotPresent);
            }
            let large = level > 1 && bit(raw, 7);
            let reserved = match level {
                2 if large => !self.config.pages_2mib || bits(raw, 20, 12) != 0,
                3 if large => !self.config.pages_1gib || bits(raw, 29, 12) != 0,
                _ => large,
            };
            if reserved || self.beyond_host(raw & ADDRESS) {
                return Err(F::SecondStageReserved);
            }
            path.push(raw);
            let mut marked = raw | 1 << 8;
            let leaf = level == 1 || large;
            let read = path.iter().all(|&e| bit(e, 0));
            let write = path.iter().all(|&e| bit(e, 1));
            if leaf {
                if need.write && !write {
                    return Err(F::NoWrite);
                }
                if need.read && !read {
                    return Err(F::NoRead);
                }
                if !read && !write {
                    return Err(F::SecondStageNotPresent);
                }
                if need.may_write && write {
                    marked |= 1 << 9;
                }
            }
            if entry.second_marks && marked != raw {
                if !entry.snoop {
                    return Err(F::SecondStageUpdateNotSnooped);
                }
                self.updates.insert(at, marked);
            }
            if leaf {
                return Ok(Page { gpa: raw & ADDRESS, size_log2: shift, read, write, execute: read });
            }
            table = raw & ADDRESS;
        }
        unreachable!("level 1 is a leaf")
    }
}
