//! Findings: what the auditor reports.
use std::collections::BTreeSet;
use std::fmt;

use serde::{Serialize, Serializer};
use svadev_fabric::{Bdf, Pasid};
use svadev_spec::vtd::tables::Level;

use super::events::HistoryEvent;

/// Pages with a finding, which is not repeated. Findings for further pages are only counted.
const MAX_KNOWN: usize = 1024;
/// Findings that are handed out in one second.
const MAX_PER_SECOND: u32 = 8;
const SECOND_NS: u64 = 1_000_000_000;

/// Whose mistake it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Something cached is stale although an invalidation that covers it has completed: the emulator's mistake.
    StaleAfterInvalidation,
    /// A table was changed, and no invalidation came within the limit: the guest's mistake.
    MissingInvalidation,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StaleAfterInvalidation => "stale-after-invalidation",
            Self::MissingInvalidation => "missing-invalidation",
        })
    }
}

/// Which cache holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Cached {
    /// The IOTLB.
    Iotlb,
    /// The paging-structure cache of a level.
    PagingStructure(#[serde(serialize_with = "number")] Level),
    /// The PASID cache.
    PasidCache,
    /// The context cache.
    ContextCache,
    /// The function's device TLB.
    DeviceTlb,
}

fn number<S: Serializer>(level: &Level, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(level.number())
}

impl fmt::Display for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iotlb => f.write_str("IOTLB"),
            Self::PagingStructure(level) => write!(f, "paging-structure cache, level {level}"),
            Self::PasidCache => f.write_str("PASID cache"),
            Self::ContextCache => f.write_str("context cache"),
            Self::DeviceTlb => f.write_str("device TLB"),
        }
    }
}

/// A mistake. Each is reported once for a PASID, page and kind.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Whether it is the emulator's or the guest's.
    pub kind: FindingKind,
    /// Which cache holds it.
    pub cache: Cached,
    /// The function that uses the entry.
    #[serde(serialize_with = "as_text")]
    pub requester: Bdf,
    /// The PASID that uses it; `None` for requests without one.
    #[serde(serialize_with = "as_number")]
    pub pasid: Option<Pasid>,
    /// First address of the page or region. 0 for the context and PASID caches.
    pub page: u64,
    /// Log2 of its size in bytes.
    pub size_log2: u8,
    /// What the cache says.
    pub old: String,
    /// What the tables say.
    pub new: String,
    /// How long that has been so, as far as the auditor saw, ns.
    pub age_ns: u64,
    /// It was found when it was used, not by going through the caches.
    pub in_use: bool,
    /// When, on the auditor's clock, ns.
    pub at_ns: u64,
    /// What happened to that range last, oldest first.
    #[serde(serialize_with = "as_lines")]
    pub events: Vec<HistoryEvent>,
}

fn as_text<S: Serializer>(bdf: &Bdf, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(bdf)
}

#[allow(clippy::ref_option, reason = "serde passes references")]
fn as_number<S: Serializer>(pasid: &Option<Pasid>, serializer: S) -> Result<S::Ok, S::Error> {
    pasid.map(Pasid::get).serialize(serializer)
}

fn as_lines<S: Serializer>(events: &[HistoryEvent], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(events.iter().map(HistoryEvent::to_string))
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, cache, requester, page, size_log2, .. } = self;
        write!(f, "{kind}: ")?;
        match self.pasid {
            Some(pasid) => write!(f, "PASID {pasid}")?,
            None => f.write_str("no PASID")?,
        }
        writeln!(f, " of {requester}, page {page:#x} (2^{size_log2} bytes), in the {cache}")?;
        writeln!(f, "  cached: {}", self.old)?;
        writeln!(f, "  tables: {}", self.new)?;
        let (age_ms, rest_ns) = (self.age_ns / 1_000_000, self.age_ns % 1_000_000);
        let how = if self.in_use { "seen at a use" } else { "seen in the background" };
        write!(f, "  differs for {age_ms}.{:03} ms, {how}", rest_ns / 1000)?;
        for event in &self.events {
            write!(f, "\n  {event}")?;
        }
        Ok(())
    }
}

/// Findings that were not handed out yet, and which there were.
#[derive(Debug, Default)]
pub(super) struct Findings {
    known: BTreeSet<(FindingKind, Option<Pasid>, u64, u8)>,
    ready: Vec<Finding>,
    /// The second that `in_second` counts.
    second: u64,
    in_second: u32,
    found: u64,
    suppressed: u64,
}

impl Findings {
    /// Whether this has been said.
    pub(super) fn is_known(&self, kind: FindingKind, pasid: Option<Pasid>, page: u64, size_log2: u8) -> bool {
        self.known.contains(&(kind, pasid, page, size_log2))
    }

    /// Takes a finding that has not been said.
    pub(super) fn add(&mut self, finding: Finding) {
        self.found += 1;
        let second = finding.at_ns / SECOND_NS;
        if second != std::mem::replace(&mut self.second, second) {
            self.in_second = 0;
        }
        if self.known.len() >= MAX_KNOWN || self.in_second >= MAX_PER_SECOND {
            // Not known, so that it is said when there is room; repeats of it count again.
            self.suppressed += 1;
            return;
        }
        self.known.insert((finding.kind, finding.pasid, finding.page, finding.size_log2));
        self.in_second += 1;
        self.ready.push(finding);
    }

    pub(super) fn take(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.ready)
    }

    pub(super) fn found(&self) -> u64 {
        self.found
    }

    pub(super) fn suppressed(&self) -> u64 {
        self.suppressed
    }
}
