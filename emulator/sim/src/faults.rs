//! Which faults exist in a world, and how often: swarm testing. Most worlds lack most kinds, so that no kind hides
//! another.
use std::fmt;

use crate::rng::Rng;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident: $most:literal,)*) => {
        /// Rates in one thousand; 0 where the world has no such fault.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Faults { $($(#[$doc])* pub $name: u64,)* }

        impl Faults {
            /// The kinds, by name.
            pub const NAMES: &[&str] = &[$(stringify!($name),)*];

            /// Each kind on or off, with a rate of its own.
            pub fn draw(rng: &mut Rng) -> Self {
                // From calm worlds to wild ones.
                let share = rng.within(100, 700);
                Self { $($name: if rng.chance(share) { rng.within(1, $most) } else { 0 },)* }
            }
        }

        impl fmt::Display for Faults {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(if self.$name != 0 { write!(f, "{}={} ", stringify!($name), self.$name)?; })*
                Ok(())
            }
        }
    };
}

faults! {
    /// Answers to page requests take long, and overtake each other.
    delayed_answers: 500,
    /// Answers come twice.
    duplicated_answers: 200,
    /// Answers never come.
    lost_answers: 60,
    /// Answers say *invalid request* for pages that are there.
    invalid_answers: 100,
    /// Answers say *response failure*.
    failed_answers: 30,
    /// The page request queue has one page, and its thread sleeps long.
    overflow: 900,
    /// Pages are taken away and come back (by the thousand steps, as all that follows).
    evict: 60,
    /// Pages move.
    migrate: 60,
    /// Writing is forbidden until the next write.
    protect: 60,
    /// Pages become a large one, which later changes may split again.
    collapse: 60,
    /// Pages are unmapped for good, and mapped anew later.
    unmap: 25,
    /// The memory map changes under the functions.
    memory_change: 15,
    /// Queues are disabled with work in them.
    disable: 10,
    /// The root table moves, and the unit's queues start over.
    unit_restart: 20,
    /// Vectors are masked for a while.
    mask: 30,
    /// The machine is saved, dropped, and goes on from what was saved.
    hand_over: 3,
    /// Function level resets.
    reset: 8,
    /// Processes are aborted, drained and unbound with work under way.
    unbind: 6,
    /// Processes die before their driver hears of it.
    exit: 6,
    /// Device-TLB invalidations never reach their function, or their completions come too late.
    lost_invalidations: 60,
}
