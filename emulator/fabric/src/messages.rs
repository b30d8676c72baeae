//! The messages themselves, by value.
use crate::{Bdf, Gpa, Iova, Pasid, PrgIndex, SourceId};

/// What an access wants, or what a translation allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// Read.
    pub read: bool,
    /// Write.
    pub write: bool,
    /// Execute (PASID TLP prefix, *Execute Requested*, PCIe 6.0 §6.20.2.2).
    pub execute: bool,
    /// In supervisor mode (*Privileged Mode Requested*, PCIe 6.0 §6.20.2.3).
    pub privileged: bool,
}

impl Access {
    /// A user-mode read.
    pub const READ: Self = Self { read: true, write: false, execute: false, privileged: false };
    /// A user-mode write.
    pub const WRITE: Self = Self { read: false, write: true, execute: false, privileged: false };
    /// A user-mode read and write.
    pub const READ_WRITE: Self = Self { read: true, write: true, execute: false, privileged: false };

    /// Whether everything in `wanted` is allowed here. Privilege is a property of the request and not a right, so it is
    /// not compared.
    pub const fn allows(self, wanted: Self) -> bool {
        (self.read || !wanted.read) && (self.write || !wanted.write) && (self.execute || !wanted.execute)
    }
}

/// ATS Translation Request (PCIe 6.0 §10.2.2), for one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslationRequest {
    /// Who asks.
    pub requester: Bdf,
    /// The PASID TLP prefix, if there is one.
    pub pasid: Option<Pasid>,
    /// Any address in the page.
    pub iova: Iova,
    /// `write == false` is the *No Write* flag: the requester promises to read only, so no dirty bit is set.
    pub access: Access,
}

/// ATS Translation Completion (PCIe 6.0 §10.2.3). With neither read nor write the other fields mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// First byte of the page, aligned to its size.
    pub gpa: Gpa,
    /// Log2 of the page's size in bytes: 12, 21, 30, or less regular when a unit merges or splits pages.
    pub size_log2: u8,
    /// What may be done with it: `read`, `write`, `execute`; `privileged` says for which mode it was asked.
    pub access: Access,
    /// The mapping is the same in every PASID of the function (*Global*).
    pub global: bool,
    /// Only untranslated accesses are allowed there (*U*): the requester must not cache it.
    pub untranslated_only: bool,
}

impl Translation {
    /// The completion that means *no translation*.
    pub const NOT_PRESENT: Self = Self {
        gpa: Gpa(0),
        size_log2: 12,
        access: Access { read: false, write: false, execute: false, privileged: false },
        global: false,
        untranslated_only: false,
    };
    /// Whether there is any translation at all.
    pub const fn is_present(self) -> bool {
        self.access.read || self.access.write
    }
}

/// Completion status of a translation request that is not *success* (PCIe 6.0 §10.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AtsError {
    /// Unsupported Request: translation requests from here are blocked; ATS should not be used.
    #[error("unsupported request")]
    UnsupportedRequest,
    /// Completer Abort: the unit failed to translate because of an error in its tables.
    #[error("completer abort")]
    CompleterAbort,
}

/// A use of a translation that a function holds. It is not a transaction, but a report to the auditor, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedUse {
    /// Who.
    pub requester: Bdf,
    /// For which PASID.
    pub pasid: Option<Pasid>,
    /// The address.
    pub iova: Iova,
    /// Where it leads by the translation.
    pub gpa: Gpa,
    /// What is done there.
    pub access: Access,
}

/// PRI Page Request message (PCIe 6.0 §10.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Who asks, and who will get the group's response.
    pub requester: Bdf,
    /// The PASID TLP prefix, if there is one.
    pub pasid: Option<Pasid>,
    /// Any address in the page; the low 12 bits do not travel.
    pub iova: Iova,
    /// What is wanted. Neither read nor write, with `last`, is a Stop Marker (PCIe 6.0 §10.4.1.2).
    pub access: Access,
    /// The group.
    pub prg_index: PrgIndex,
    /// This is the group's last request: it is answered when it and its predecessors were handled.
    pub last: bool,
}

/// What the IOMMU did with a page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageRequestOutcome {
    /// It is in the guest's page request queue, or was answered already by the unit itself through
    /// [`Downstream::page_group_response`](crate::Downstream::page_group_response).
    Accepted,
    /// It is lost, and no response comes: the queue overflowed, and this was not a group's last request.
    Dropped,
}

/// Response code of a page request group (PCIe 6.0 §10.4.2.1, VT-d 4.1 §7.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseCode {
    /// All pages of the group were made present: translate again.
    Success,
    /// At least one page does not exist or forbids the access.
    InvalidRequest,
    /// Nothing can be served until software enables page requests again.
    Failure,
}

/// PRG Response message (PCIe 6.0 §10.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageGroupResponse {
    /// The PASID of the group's requests, where the guest put one into the response.
    pub pasid: Option<Pasid>,
    /// The group.
    pub prg_index: PrgIndex,
    /// The answer.
    pub code: ResponseCode,
}

/// ITag of an invalidation (PCIe 6.0 §10.3.1). Wider than the 5 bits on the wire, so that none is ever reused in
/// flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InvalidateTag {
    /// Who invalidates. Each source counts for itself, and the completion goes back to it.
    pub source: SourceId,
    /// Which of its invalidations.
    pub number: u64,
}

impl InvalidateTag {
    /// The IOMMU's invalidation with this number.
    pub const fn unit(number: u64) -> Self {
        Self { source: SourceId::UNIT, number }
    }
}

/// The addresses an invalidation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidateRange {
    /// Everything.
    All,
    /// `1 << size_log2` bytes from an address aligned to that; `size_log2` is 12 to 63.
    Naturally {
        /// First byte.
        start: Iova,
        /// Log2 of the bytes.
        size_log2: u8,
    },
}

impl InvalidateRange {
    /// Whether a page of `1 << page_log2` bytes at `page` shares a byte with the range.
    pub const fn overlaps(self, page: Iova, page_log2: u8) -> bool {
        match self {
            Self::All => true,
            Self::Naturally { start, size_log2 } => {
                // Both are naturally aligned: they overlap exactly if they agree above the larger one's size.
                let log2 = if size_log2 > page_log2 { size_log2 } else { page_log2 };
                log2 >= 64 || (start.0 >> log2) == (page.0 >> log2)
            }
        }
    }
}

/// Invalidate Request (PCIe 6.0 §10.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidateRequest {
    /// Which request this is.
    pub tag: InvalidateTag,
    /// With a PASID, the entries of that PASID only; without, the entries that were requested without one.
    pub pasid: Option<Pasid>,
    /// The entries of every PASID (*Global Invalidate*, PCIe 6.0 §10.3.8), whatever `pasid` says.
    pub global: bool,
    /// Which addresses.
    pub range: InvalidateRange,
}

/// A function's immediate answer to an invalidate request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an invalidation is over only when its completion has come"]
pub enum InvalidateAck {
    /// It is carried out.
    Done,
    /// [`Upstream::invalidate_complete`](crate::Upstream::invalidate_complete) will say when.
    Pending,
}

/// A message-signalled interrupt: a 32-bit write to an address in `FEEx_xxxxh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Where.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// What happened to a message interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an interrupt that was held must be tried again"]
pub enum Delivery {
    /// It is on its way.
    Sent,
    /// Nobody could send it. The sender keeps it pending and tries again.
    Held,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_overlap_pages_of_any_size() {
        let range = InvalidateRange::Naturally { start: Iova(0x20_1000), size_log2: 12 };
        assert!(range.overlaps(Iova(0x20_1000), 12));
        assert!(!range.overlaps(Iova(0x20_2000), 12));
        assert!(range.overlaps(Iova(0x20_0000), 21), "a 4 KiB range inside a 2 MiB page");
        let wide = InvalidateRange::Naturally { start: Iova(0), size_log2: 30 };
        assert!(wide.overlaps(Iova(0x3fff_f000), 12));
        assert!(!wide.overlaps(Iova(0x4000_0000), 12));
        assert!(InvalidateRange::Naturally { start: Iova(0), size_log2: 63 }.overlaps(Iova(0x7fff_ffff_f000), 12));
    }
}
