//! Bugs on purpose, in the wiring and in the mock kernel, each with the checkers that may see it: a bug that some other
//! checker stumbles over does not prove that its own checker works.
use crate::checker::Checker;

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident: $($checker:ident)|+,)*) => {
        /// A planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant { $($(#[$doc])* $name,)* }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name, as the command line takes it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// Who may see it first.
            pub const fn caught_by(self) -> &'static [Checker] {
                match self { $(Self::$name => &[$(Checker::$checker),+],)* }
            }
        }
    };
}

mutants! {
    /// Some device-TLB invalidations never reach their function. Completions that are written to where a ring once was
    /// are lost, so that their work never ends.
    SkipDeviceTlb: FreedFrame | FrozenPage | Dirty | Bytes | Reason | Once | Liveness,
    /// Invalidations count as complete when they are sent.
    EarlyAck: WaitOrder,
    /// Some completions of invalidations are lost.
    LoseCompletion: Liveness | Reason | PasidReuse,
    /// Some invalidations are acknowledged twice.
    AckTwice: Acknowledge,
    /// Some page group responses are lost.
    LoseAnswer: Reason | Liveness,
    /// Some groups are answered twice.
    AnswerTwice: OneResponse,
    /// Page requests use an index that is taken.
    ReuseIndex: IndexRests,
    /// Some translations are of another process.
    WrongPasid: FreedFrame | FrozenPage | Dirty | Bytes | Reason | Once | UnitFaults,
    /// Some dirty bits are lost before the kernel looks at them.
    ForgetDirty: Dirty,
    /// Translations allow writing whether the page does or not.
    GiveWrite: FrozenPage | Dirty | Bytes,
    /// Some wakes are lost.
    LoseWake: Liveness | Reason,
    /// Some interrupts of the unit are lost.
    LoseInterrupt: Liveness | Reason,
    /// Memory that leaves the map is given back at once.
    ReleaseEarly: ResetAndRelease,
    /// The VMM takes bus mastering for off when it is on.
    ForgetBusMaster: BusMaster,
    /// The VMM takes vectors for masked that are not.
    ForgetUnmask: Vectors,
    /// A machine is restored without the state of its unit.
    RestoreForgetsUnit: HandOver,
    /// The VMM forgets a command that it waits for.
    ForgetCommand: Transport,
    /// The kernel frees pages before their invalidation is over.
    FreeEarly: FreedFrame | FrozenPage | Dirty | Bytes | Reason | Once,
    /// The kernel invalidates no more than the first 4 KiB of a large page.
    SmallInvalidation: FreedFrame | FrozenPage | Dirty | Bytes | Reason | Once,
    /// The kernel says that no table but the last was changed where it takes tables out.
    LeafOnly: FreedFrame | FrozenPage | Dirty | Bytes | Reason | Once | UnitFaults,
    /// The kernel does not invalidate the unit's own translations.
    SkipIotlb: FreedFrame | FrozenPage | Dirty | Bytes | Reason | Once,
    /// The kernel takes invalidations that timed out for done.
    IgnoreTimeout: FreedFrame | FrozenPage | Dirty | Bytes | Reason | Once | Liveness,
    /// The kernel reuses a PASID without draining it.
    SkipDrain: PasidReuse | OneResponse | UnitFaults | Reason | Bytes,
    /// The driver does not abort the work of a PASID.
    SkipAbort: AfterAbort | PasidReuse,
    /// The driver submits some descriptors twice.
    SubmitTwice: Once,
    /// The kernel's invalidation descriptors have a reserved bit set now and then.
    BadDescriptor: UnitFaults,
}

impl Mutant {
    /// The one with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|m| m.name().eq_ignore_ascii_case(name))
    }
}
