//! The bugs.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// A bug that can be planted. Each is one that somebody could write; its name says what is done wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[$doc])* $name,)+
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }

            /// The one with this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
            }
        }
    };
}

mutants! {
    // The unit's invalidation queue.

    /// Device-TLB invalidations never reach their function.
    SkipDeviceTlbFlush,
    /// A wait completes while acknowledgements are missing.
    WaitBeforeAcknowledgements,
    /// A wait that parks has written its status already.
    StatusBeforeInvalidations,
    /// A wait that parks is stepped over.
    ParkSkipsWait,
    /// After a time-out the wait that waited is carried out all the same.
    TimeoutKeepsWait,
    /// A time-out takes an invalidation away that was not sent yet.
    TimeoutSkipsInvalidation,
    /// The acknowledgement of any function counts.
    AcknowledgementFromAnyone,
    /// The head goes on past the end of the queue.
    QueueHeadNotWrapped,
    /// A queue that is too long for one call is not gone on with.
    LongQueueForgotten,
    /// A bad descriptor does not stop the queue.
    QueueErrorGoesOn,
    /// The third and fourth quadword of a descriptor are not looked at.
    DescriptorUpperHalfUnchecked,

    // The unit's structures in memory.

    /// Half an entry is taken for an entry.
    EntryReadOnce,
    /// The last five quadwords of a PASID table entry are not looked at.
    PasidTableTailUnchecked,

    /// The PASID directory is taken for half its size.
    PasidDirectoryHalved,
    /// RID_PRIV is not looked at.
    RidPrivIgnored,
    /// Legacy second-stage tables are taken for four levels, whatever AW says.
    LegacyWidthIgnored,
    /// Nested translation works though the unit does not offer it.
    NestedUnconfigured,
    /// First-stage translation works though the unit does not offer it.
    FirstStageUnconfigured,

    // The unit's registers.

    /// A context command for one function does nothing.
    ContextCommandOfDeviceDoesNothing,
    /// The queue's address can be changed while the queue runs.
    QueueAddressWritable,
    /// A queue that is switched off and on still waits for acknowledgements of before.
    RestartKeepsOutstanding,
    /// A write of 8 bytes to two registers of 4 writes the first only.
    WideWriteHalved,

    // The unit's interrupts.

    /// A page request or completion event that software has serviced is sent all the same.
    ServicedEventStaysPending,

    /// An interrupt that nobody could send counts as sent.
    HeldInterruptForgotten,
    /// A completion event that may have been lost on its way is not sent again.
    CompletionEventNotRepeated,

    // The unit's gate.

    /// A drain completes while page requests are held.
    DrainForgetsTheGate,

    // The unit's caches.

    /// Cached translations of a domain serve all its PASIDs.
    IotlbIgnoresPasid,
    /// Cached translations of a PASID serve it in all domains.
    IotlbIgnoresDomain,
    /// Paging-structure entries of a domain serve all its PASIDs.
    PagingCachesIgnorePasid,
    /// Paging-structure entries lose the rights of the levels above.
    PagingCachesForgetRights,
    /// A hit serves a write though dirty was not set.
    IotlbHitForgetsDirty,
    /// Page-selective invalidations take 4 KiB entries only.
    PageInvalidationForgetsLargePages,
    /// A range ends one page early.
    PageInvalidationOffByOne,
    /// Every page-selective invalidation is taken for one with the hint (IH).
    PageInvalidationKeepsPaths,
    /// PASID-selective invalidations of the IOTLB do nothing.
    PasidInvalidationDoesNothing,
    /// Domain-selective invalidations of the IOTLB do nothing.
    DomainInvalidationDoesNothing,
    /// PASID-cache invalidations of a PASID do nothing.
    PasidCacheInvalidationDoesNothing,
    /// Context-cache invalidations of a function do nothing.
    ContextCacheInvalidationDoesNothing,
    /// A context-cache invalidation leaves the PASID entries that were reached through the context entry.
    ContextInvalidationKeepsPasids,
    /// Context-cache invalidations take no neighbours.
    FunctionMaskIgnored,
    /// A new root table leaves the caches as they are.
    RootPointerKeepsCaches,
    /// A page request leaves the unit's own translation of the page.
    PageRequestKeepsTranslation,

    // The unit's walks.

    /// First-stage walks do not set accessed.
    ForgetAccessed,
    /// First-stage walks do not set dirty.
    ForgetDirty,
    /// Second-stage walks do not set dirty.
    ForgetSecondStageDirty,
    /// An entry that changed under the walk is used as it was.
    LostRaceIsIgnored,
    /// User requests get supervisor pages.
    UserSupervisorIgnored,
    /// Only the last entry's R/W counts.
    UpperWriteIgnored,
    /// A supervisor may write to read-only pages, whatever WPE says.
    WriteProtectIgnored,
    /// Supervisor requests are served without SRE.
    SupervisorRequestsUnchecked,
    /// Addresses need not be canonical.
    CanonicalUnchecked,
    /// Reserved bits of first-stage entries are not looked at.
    FirstStageReservedUnchecked,
    /// Reserved bits of second-stage entries are not looked at.
    SecondStageReservedUnchecked,
    /// Nested walks take every first stage for one of four levels.
    NestedForgetsLevelFive,
    /// Nested walks do not send the addresses of first-stage tables through the second stage.
    NestedTablesUntranslated,
    /// Nested translations have the first stage's rights alone.
    NestedIgnoresSecondStageRights,
    /// Translations may lead into the interrupt range.
    InterruptRangeUnchecked,

    // The unit's faults and page requests.

    /// Faults are not recorded.
    FaultNotRecorded,
    /// Faults are recorded under another PASID.
    FaultWithWrongPasid,
    /// Faults are recorded whatever FPD says, if the PASID entry is cached.
    CachedEntryForgetsFpd,
    /// Faults are recorded whatever FPD says.
    FaultProcessingDisableIgnored,
    /// A page group response is sent twice.
    AnswerTwice,
    /// Page group responses are lost.
    AnswerLost,
    /// A full page request queue does not set PRO.
    OverflowWithoutStatus,
    /// Software hears of a page request before it is in the queue.
    PageRequestTailBeforeEntry,

    // The device TLB and the invalidation handshake.

    /// A hit serves a write without the right to.
    TlbHitIgnoresWrite,
    /// Cached translations serve all PASIDs.
    TlbIgnoresPasid,
    /// Invalidations of a range take 4 KiB entries only.
    TlbInvalidationForgetsLargePages,
    /// A range ends one page early.
    TlbInvalidationOffByOne,
    /// Engines acknowledge invalidations without dropping anything.
    EngineDropsNothing,
    /// An engine in the middle of a slice is not waited for.
    SliceIsNotWaitedFor,
    /// An engine goes to sleep without looking for messages once more.
    SleepWithoutLooking,
    /// An engine goes to sleep without looking at the doorbells once more.
    SleepWithoutDoorbells,
    /// Windows are used after their region was removed.
    MemoryChangeDropsNothing,
    /// What may be used once is kept.
    UntranslatedOnlyIsKept,
    /// The engine does without bus mastering.
    BusMasterUnchecked,

    // The function's page requests.

    /// A response counts whatever PASID it names.
    ResponseOfAnyPasid,
    /// An index is used again before its response came.
    IndexReusedUnanswered,
    /// More page requests are sent than were allocated.
    AllocationIgnored,
    /// After *success* the page is asked for again and again.
    SuccessRetriedForever,
    /// *Invalid* for a group fails the descriptor though the needed page may be there.
    InvalidIsNotNarrowed,
    /// An abort does not wait for the PASID's responses.
    AbortWithoutResponses,
    /// A disable of the function does not wait for responses.
    DisableWithoutResponses,

    // Queues and descriptors.

    /// Descriptors do not wait for a fence.
    FenceIgnored,
    /// A DRAIN descriptor completes at once.
    DrainIgnored,
    /// DRAIN_PASID is over at once.
    DrainCommandIgnored,
    /// A descriptor completes with its first slice.
    CompletionBeforeData,
    /// A parked fetch counts its descriptor again.
    ParkCountsDescriptorTwice,
    /// A failed descriptor reports one byte too many.
    BytesDoneOffByOne,
    /// Completions are written over ones that nobody has read.
    CompletionRingOverrun,
    /// A copy's operands may overlap.
    OverlapUnchecked,
    /// A reset leaves queues running.
    ResetKeepsQueues,
    /// A command that is under way is not in an engine's saved state.
    SaveForgetsCommand,
    /// A descriptor that was fetched and not started is not in a queue's saved state.
    SaveForgetsDescriptor,

    // The mirror.

    /// An engine goes online and does not look for what was posted meanwhile.
    MirrorArrivesWithoutLooking,
    /// An engine goes offline and does not look for what was posted meanwhile.
    MirrorRestsWithoutLooking,
    /// An invalidation ring that was overrun is taken for one that was not.
    MirrorOverrunIgnored,
    /// An entry that the driver may be writing counts as whole.
    MirrorOverrunOffByOne,
    /// The ring is tested for an overrun only before its entries are read.
    MirrorOverrunTestedOnce,
    /// Nobody tells a driver that sleeps until an engine acknowledges.
    MirrorWaiterNotWoken,
    /// What the driver says is not dropped from the device TLB.
    MirrorDropsNothing,
    /// An engine that no longer looks at the mirror does not end the backend.
    MirrorWatchdogSleeps,
    /// Reserved bits of page tables are not looked at.
    MirrorReservedBitsIgnored,
    /// A page that may only be read is written.
    MirrorWriteRightIgnored,
    /// Two waits have the same token, one after the other.
    MirrorTokenReused,
    /// A response with another wait's token counts.
    MirrorStaleResponseTaken,
    /// Events are written over ones that nobody has read.
    MirrorEventRingOverrun,
    /// The first event raises no interrupt.
    MirrorEventWithoutInterrupt,

    /// A user queue's descriptors may name the driver's addresses and device memory.
    UserQueueNamesSpaces,

    // Guest memory.

    /// A region that was unmapped stays in the map.
    UnmapKeepsRegion,
    /// Regions that only allow reads are written to.
    ReadOnlyRegionWritten,
    /// Regions may overlap.
    RegionOverlapUnchecked,
    /// Bytes that the file has lost are not noticed.
    LostBytesUnnoticed,
    /// A view that was kept is taken again though the map has changed.
    KeptViewNotRenewed,
    /// The unit keeps what it walked last when it hears that the map has changed.
    UnitKeepsMemory,

    // The running backend.

    /// A function raises the vector after the one that is meant.
    InterruptOnTheNextVector,
    /// A function raises vectors while it may not master the bus.
    InterruptWithoutBusMaster,
    /// The unit's interrupt goes through a function that may not master the bus.
    UnitInterruptWithoutBusMaster,
    /// The unit's interrupts that the VMM drops with a function's bus mastering are not sent again.
    InterruptsNotRepeated,
    /// The unit's interrupts that nobody could send are not sent when a function may master the bus.
    InterruptsNotRetried,
    /// A masked vector fires.
    MaskIgnored,
    /// A pending vector does not fire when it is unmasked.
    PendingVectorLost,
    /// Vectors that are pending are not sent when bus mastering is turned on.
    PendingVectorsNotRetried,
    /// A reset leaves vectors pending.
    ResetKeepsPendingVectors,
    /// Memory that left the map is unmapped while engines use it.
    MemoryReleasedEarly,
    /// An unmap is carried out and not answered.
    UnmapNeverAnswered,
    /// The end of a reset answers the youngest request and not the oldest.
    YoungestResetIsAnswered,
    /// A function level reset has no place in the order of resets.
    FlrTakesNoPlace,
    /// A reset leaves eventfds and masks.
    ResetKeepsVectors,
    /// The function of a client that is gone keeps its registers.
    DisconnectKeepsState,
    /// The function of a client that is gone keeps eventfds and masks.
    DisconnectKeepsVectors,
    /// The function of a client that is gone keeps its memory.
    DisconnectKeepsMemory,
    /// A reset of the unit's function leaves the unit as it was.
    UnitSurvivesReset,
    /// The unit of a client that is gone stays as it was.
    UnitSurvivesDisconnect,
    /// The unit gives up on an invalidation one look too soon.
    OverdueOneLookEarly,
    /// A host that stalls lets the auditor's clock run on.
    StalledAuditClockRuns,
}
