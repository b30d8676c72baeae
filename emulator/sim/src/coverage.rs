//! What happened in worlds, and how often: a checker that is never asked, and a fault that never comes, prove nothing.
use std::collections::BTreeMap;
use std::fmt;

use crate::checker::Checker;
use crate::faults::Faults;

/// What a count is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// What a world was made of: it counts worlds.
    World,
    /// A fault that was injected.
    Fault,
    /// A checker that was asked.
    Checker,
    /// How a descriptor ended.
    Completion,
    /// What else the kernel, the unit or the transport came through.
    Path,
}

/// Counts by group and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<(Group, &'static str), u64>);

/// Names that must be reached, but for faults and checkers, which have lists of their own.
const EXPECTED: &[(Group, &[&str])] = &[
    (
        Group::World,
        &[
            "caching none",
            "caching strict",
            "caching adversarial",
            "transport direct",
            "transport vfio-user",
            "levels 4",
            "levels 5",
            "unit nested",
            "unit not nested",
            "processes first-stage",
            "processes nested",
            "kernel DMA first-stage",
            "kernel DMA second-stage",
            "kernel DMA nested",
            "kernel DMA pass-through",
        ],
    ),
    (
        Group::Completion,
        &[
            "Success",
            "Mismatch",
            "PageFault",
            "PageRequestFailed",
            "PageRequestTimeout",
            "TranslationBlocked",
            "Aborted",
            "dropped",
        ],
    ),
    (
        Group::Path,
        &[
            "invalidation wait parked",
            "invalidation timed out",
            "invalidation completed too late",
            "page request queue overflow",
            "group answered by the unit",
            "page requests drained",
            "PASID used again",
            "queue halted",
            "DMA fault recorded",
            "stop marker received",
            "message in pieces",
            "DMA map and unmap",
            "reset by message",
            "reset during a reset",
            "machine saved and restored",
            "every function reset",
            "bus mastering off before a reset",
            "interrupt dropped with bus mastering",
            "vector masked",
            "vector pending when unmasked",
            "vector pending when bus mastering came",
            "bus mastering on again before a reset",
            "unit reset",
            "reset of the unit's function without effect",
            "transport disconnected",
            "translation of 2 MiB",
            "translation of 1 GiB",
            "large page split",
            "large page evicted",
            "large page moved",
            "large page protected",
            "root table moved",
            "invalidation queue restarted",
            "page request queue restarted",
        ],
    ),
];

impl Coverage {
    /// It happened.
    pub fn count(&mut self, group: Group, name: &'static str) {
        self.add(group, name, 1);
    }

    /// It happened `times`.
    pub fn add(&mut self, group: Group, name: &'static str, times: u64) {
        *self.0.entry((group, name)).or_default() += times;
    }

    /// Adds another world's counts.
    pub fn merge(&mut self, other: &Self) {
        for (&(group, name), &times) in &other.0 {
            self.add(group, name, times);
        }
    }

    /// How often it happened.
    pub fn get(&self, group: Group, name: &str) -> u64 {
        self.0.iter().filter(|((g, n), _)| *g == group && *n == name).map(|(_, &times)| times).sum()
    }

    /// Everything that worlds are made to reach.
    pub fn expected() -> impl Iterator<Item = (Group, &'static str)> {
        let faults = Faults::NAMES.iter().map(|&name| (Group::Fault, name));
        let checkers = Checker::ALL.iter().map(|checker| (Group::Checker, checker.name()));
        let others = EXPECTED.iter().flat_map(|&(group, names)| names.iter().map(move |&name| (group, name)));
        faults.chain(checkers).chain(others)
    }

    /// What of it never happened.
    pub fn missing(&self) -> Vec<(Group, &'static str)> {
        Self::expected().filter(|&(group, name)| self.get(group, name) == 0).collect()
    }
}

/// The table: every count, and 0 for what was expected and never happened.
impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = self.0.clone();
        for key in Self::expected() {
            rows.entry(key).or_default();
        }
        for ((group, name), times) in rows {
            writeln!(f, "{:<12} {name:<34} {times:>12}", format!("{group:?}").to_lowercase())?;
        }
        Ok(())
    }
}
