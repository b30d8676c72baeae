//! Address spaces, and addresses in them.
use svadev_fabric::{Access, Pasid, SourceId};

/// An address space: whose translations, and which of its spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceId(u32);

/// In place of a PASID: requests without one.
const NO_PASID: u32 = 1 << 20;
/// Where the source starts.
const SOURCE_SHIFT: u32 = 24;

impl SpaceId {
    /// The space of a PASID, or of requests without one, as `source` translates it.
    #[inline]
    pub const fn new(source: SourceId, pasid: Option<Pasid>) -> Self {
        let number = match pasid {
            Some(pasid) => pasid.get(),
            None => NO_PASID,
        };
        Self((source.0 as u32) << SOURCE_SHIFT | number)
    }

    /// Who translates it.
    #[inline]
    pub const fn source(self) -> SourceId {
        SourceId(self.0.to_le_bytes()[3])
    }

    /// Its PASID, if requests for it carry one.
    #[inline]
    pub const fn pasid(self) -> Option<Pasid> {
        if self.0 & NO_PASID != 0 { None } else { Some(Pasid::from_low_bits(self.0 as u64)) }
    }

    /// All of it in one word. No space is `u32::MAX`.
    #[inline]
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }
}

/// An address that a piece of work needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address space.
    pub space: SpaceId,
    /// The address, bytes.
    pub iova: u64,
    /// It is written to, not read.
    pub write: bool,
}

impl Target {
    /// What is done there, as a request says it.
    #[inline]
    pub fn access(&self) -> Access {
        if self.write { Access::WRITE } else { Access::READ }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_keeps_its_source_and_its_pasid() {
        for source in [SourceId::UNIT, SourceId::IDENTITY, SourceId(254)] {
            for pasid in [None, Pasid::new(0).ok(), Some(Pasid::MAX)] {
                let space = SpaceId::new(source, pasid);
                assert_eq!((space.source(), space.pasid()), (source, pasid));
            }
        }
    }
}
