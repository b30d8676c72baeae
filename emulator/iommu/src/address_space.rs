//! Address spaces: what the tables say about the requests of one PASID, or of one function in legacy mode. Data only.
use svadev_spec::vtd::tables::Level;

use crate::cache::CacheTag;

/// Where first-stage tables are and how they are used: the fields of a PASID table entry (§9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirstStage {
    /// FSPTPTR.
    pub(crate) root: u64,
    /// Level of the topmost table, 4 or 5 (FSPM).
    pub(crate) top: Level,
    /// SRE.
    pub(crate) supervisor_requests: bool,
    /// ERE.
    pub(crate) execute_requests: bool,
    /// WPE.
    pub(crate) write_protect: bool,
    /// EAFE.
    pub(crate) extended_accessed: bool,
    /// PWSNP.
    pub(crate) page_walk_snoop: bool,
}

/// Where second-stage tables are and how they are used: the fields of a PASID table entry or a legacy context entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SecondStage {
    /// SSPTPTR.
    pub(crate) root: u64,
    /// Level of the topmost table, 3 to 5 (AW + 2).
    pub(crate) top: Level,
    /// SSADE.
    pub(crate) accessed_dirty: bool,
    /// PWSNP.
    pub(crate) page_walk_snoop: bool,
}

/// How addresses of one PASID, or of one function, are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stages {
    First(FirstStage),
    Second(SecondStage),
    Nested(FirstStage, SecondStage),
    PassThrough,
}

/// What the tables say about the requests of one PASID, or of one function in legacy mode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AddressSpace {
    /// Tag of its entries in the translation caches.
    pub(crate) tag: CacheTag,
    pub(crate) stages: Stages,
    /// FPD of any of the entries that led here.
    pub(crate) fault_processing_disable: bool,
    /// Faults have the codes of legacy mode.
    pub(crate) legacy: bool,
    /// The context entry lets translation requests in (DTE).
    pub(crate) serves_ats: bool,
    /// The context entry lets requests with PASID in (PASIDE).
    pub(crate) serves_pasids: bool,
}

impl AddressSpace {
    /// Fills empty places of the PASID cache.
    pub(crate) const BLANK: Self = Self {
        tag: CacheTag::of_domain(0),
        stages: Stages::PassThrough,
        fault_processing_disable: false,
        legacy: false,
        serves_ats: false,
        serves_pasids: false,
    };
}
