//! The checkers, by name: what a failure was seen by, and what a planted bug must be seen by.
use std::fmt;

macro_rules! checkers {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A rule that a world watches.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Checker { $($(#[$doc])* $name,)* }

        impl Checker {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

checkers! {
    /// Nobody writes to a frame after it was freed.
    FreedFrame,
    /// Nobody writes to a page after writing was forbidden, and the invalidation is over.
    FrozenPage,
    /// A page whose table entry is not dirty is as it was on disk.
    Dirty,
    /// Memory, and what a descriptor says of it, is what the work makes it.
    Bytes,
    /// An error, or a queue that stops, has a reason.
    Reason,
    /// Each descriptor completes once, in its queue, or goes with a reason.
    Once,
    /// Each page request group is answered once.
    OneResponse,
    /// The index of a group rests until its response.
    IndexRests,
    /// Nothing is asked for a PASID after its abort is over.
    AfterAbort,
    /// No group of a PASID is unanswered when its abort is over, and when it is used again.
    PasidReuse,
    /// A wait completes after the invalidations before it.
    WaitOrder,
    /// An invalidation that is acknowledged was pending.
    Acknowledge,
    /// The invalidation queue reports no error, and every fault that is recorded has a reason.
    UnitFaults,
    /// A change of memory or a reset is reported as over once, when it is, and leaves nothing behind.
    ResetAndRelease,
    /// A function sends no memory write and fires no vector without bus mastering.
    BusMaster,
    /// A vector fires when it may, and is not lost while it is masked.
    Vectors,
    /// Each message of the VMM is answered once, and as it must be.
    Transport,
    /// A machine that is restored has the state that was saved.
    HandOver,
    /// Everything ends.
    Liveness,
}

impl fmt::Display for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a world is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Who saw it.
    pub checker: Checker,
    /// What was seen.
    pub what: String,
}

impl Failure {
    /// Something never ended, rather than having been wrong.
    pub fn is_liveness(&self) -> bool {
        self.checker == Checker::Liveness
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.checker, self.what)
    }
}
