//! The checks, and which one is there for which mutant.
use std::fmt;

use svadev_mutation::Mutant;

/// Some tests of a crate.
#[derive(Clone, Copy)]
pub(crate) struct Check {
    pub(crate) krate: &'static str,
    /// Parts of their names; none means all.
    pub(crate) tests: &'static [&'static str],
}

impl Check {
    /// Those of its name parts that no test has, `names` being the tests of its crate: somebody renamed a test.
    pub(crate) fn missing(&self, names: &[String]) -> impl Iterator<Item = &'static str> {
        self.tests.iter().copied().filter(|part| !names.iter().any(|name| name.contains(part)))
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.krate, if self.tests.is_empty() { "all tests".into() } else { self.tests.join(" ") })
    }
}

/// Left out where all tests of a crate are meant. The models of handshakes under loom are a check of their own.
pub(crate) const MODELS: &str = "models::";

/// Everything, cheap ones first. The simulated world's own mutants, and its checks of itself, are left out: they run in
/// its tests.
pub(crate) const ALL_CHECKS: &[Check] = &[
    Check { krate: "svadev-memory", tests: &[] },
    Check { krate: "svadev-iommu", tests: &[] },
    Check { krate: "svadev-mirror", tests: &[] },
    Check { krate: "svadev-endpoint", tests: &[] },
    Check { krate: "svadev-accelerator", tests: &[] },
    Check { krate: "svadev-host", tests: &[] },
    WORLD,
    endpoint(&[MODELS]),
    mirror(&[MODELS]),
    memory(&[MODELS]),
];

const fn iommu(tests: &'static [&'static str]) -> Check {
    Check { krate: "svadev-iommu", tests }
}

const fn accelerator(tests: &'static [&'static str]) -> Check {
    Check { krate: "svadev-accelerator", tests }
}

const fn memory(tests: &'static [&'static str]) -> Check {
    Check { krate: "svadev-memory", tests }
}

const fn mirror(tests: &'static [&'static str]) -> Check {
    Check { krate: "svadev-mirror", tests }
}

const fn host(tests: &'static [&'static str]) -> Check {
    Check { krate: "svadev-host", tests }
}

/// The simulated world.
const WORLD: Check = Check { krate: "svadev-sim", tests: &["fixed_seeds_are_clean", "every_caching_mode_is_clean"] };
/// An interrupt of the unit in the simulated machine, without the world around it.
const RETRY: Check = Check { krate: "svadev-sim", tests: &["an_interrupt_that_nobody_can_send"] };
/// The reference model against the walker.
const MODEL: Check = iommu(&["a_unit_without_caches_is_the_model"]);
/// The oracle of what caches may answer.
const ORACLE: Check = iommu(&["caches_answer_nothing_that_was_invalidated"]);
const fn endpoint(tests: &'static [&'static str]) -> Check {
    Check { krate: "svadev-endpoint", tests }
}

/// The device's model.
const DEVICE_MODEL: Check = accelerator(&["the_device_does_what_the_model_does"]);

/// What is expected to catch a mutant, and is tried first.
pub(crate) fn first_check(mutant: Mutant) -> Check {
    match mutant {
        Mutant::SkipDeviceTlbFlush
        | Mutant::WaitBeforeAcknowledgements
        | Mutant::AnswerLost
        | Mutant::ForgetDirty
        | Mutant::EngineDropsNothing
        | Mutant::AbortWithoutResponses
        | Mutant::SaveForgetsCommand
        | Mutant::SaveForgetsDescriptor
        | Mutant::InterruptOnTheNextVector
        | Mutant::InterruptWithoutBusMaster
        | Mutant::UnitInterruptWithoutBusMaster
        | Mutant::InterruptsNotRepeated
        | Mutant::MaskIgnored
        | Mutant::PendingVectorLost
        | Mutant::ResetKeepsPendingVectors
        | Mutant::MemoryReleasedEarly
        | Mutant::UnmapNeverAnswered
        | Mutant::YoungestResetIsAnswered
        | Mutant::FlrTakesNoPlace
        | Mutant::ResetKeepsVectors
        | Mutant::DisconnectKeepsState
        | Mutant::DisconnectKeepsVectors
        | Mutant::DisconnectKeepsMemory
        | Mutant::UnitSurvivesReset
        | Mutant::UnitSurvivesDisconnect => WORLD,
        Mutant::InterruptsNotRetried => RETRY,
        Mutant::MirrorArrivesWithoutLooking | Mutant::MirrorRestsWithoutLooking => {
            mirror(&["an_engine_that_is_offline_is_not_waited_for"])
        }
        Mutant::MirrorOverrunIgnored | Mutant::MirrorOverrunOffByOne => mirror(&["a_ring_that_was_overrun"]),
        Mutant::MirrorOverrunTestedOnce => mirror(&["an_entry_that_is_overwritten_while_it_is_read"]),
        Mutant::MirrorWaiterNotWoken => mirror(&["who_sleeps_until_an_engine_acknowledges"]),
        Mutant::MirrorDropsNothing => accelerator(&["after_an_acknowledgement_nothing_is_used"]),
        Mutant::MirrorWatchdogSleeps => host(&["only_an_engine_that_has_stopped_looking"]),
        Mutant::UserQueueNamesSpaces => accelerator(&["the_address_space_belongs_to_the_queue"]),
        Mutant::MirrorReservedBitsIgnored => mirror(&["tables_that_cannot_be"]),
        Mutant::MirrorWriteRightIgnored => mirror(&["walks_find_pages_of_every_size"]),
        Mutant::MirrorTokenReused | Mutant::MirrorStaleResponseTaken => mirror(&["stale_and_invented_tokens"]),
        Mutant::MirrorEventRingOverrun => mirror(&["an_event_without_room"]),
        Mutant::MirrorEventWithoutInterrupt => mirror(&["an_event_says_what_is_missing"]),
        Mutant::OverdueOneLookEarly => host(&["what_is_outstanding_for_long"]),
        Mutant::PendingVectorsNotRetried => host(&["a_vector_without_bus_mastering"]),
        Mutant::StalledAuditClockRuns => host(&["a_stall_is_not_the_guests_time"]),
        Mutant::StatusBeforeInvalidations | Mutant::ParkSkipsWait => iommu(&["a_wait_is_over_only_after"]),
        Mutant::TimeoutKeepsWait => iommu(&["a_timeout_aborts_the_wait"]),
        Mutant::TimeoutSkipsInvalidation => iommu(&["a_timeout_takes_nothing_that_was_not_sent"]),
        Mutant::AcknowledgementFromAnyone => iommu(&["unexpected_completions_are_errors"]),
        Mutant::QueueHeadNotWrapped => iommu(&["the_queue_wraps"]),
        Mutant::LongQueueForgotten => host(&["a_queue_too_long_for_one_call"]),
        Mutant::QueueErrorGoesOn => iommu(&["bad_descriptors_stop_the_queue"]),

        Mutant::DescriptorUpperHalfUnchecked => iommu(&["the_upper_half_of_a_wide_descriptor"]),
        Mutant::PasidTableTailUnchecked => iommu(&["every_structure_fault_has_its_code"]),
        Mutant::EntryReadOnce => iommu(&["half_a_pasid_entry_is_not_cached"]),

        Mutant::PasidDirectoryHalved => iommu(&["a_directory_has_room_for_every_pasid"]),
        Mutant::RidPrivIgnored => iommu(&["rid_priv_makes_requests_without_pasid"]),
        Mutant::LegacyWidthIgnored => iommu(&["legacy_tables_have_as_many_levels"]),
        Mutant::FirstStageUnconfigured => iommu(&["a_unit_without_a_first_stage"]),
        Mutant::NestedUnconfigured => iommu(&["a_unit_without_nested_translation"]),
        Mutant::ContextCommandOfDeviceDoesNothing => iommu(&["a_context_command_of_a_device"]),
        Mutant::QueueAddressWritable => iommu(&["the_queue_address_is_fixed"]),
        Mutant::RestartKeepsOutstanding => iommu(&["a_restarted_queue_waits_for_nothing"]),
        Mutant::WideWriteHalved => iommu(&["a_wide_write_reaches_both_registers"]),
        Mutant::ServicedEventStaysPending => iommu(&["an_event_serviced_while_masked"]),
        Mutant::CachedEntryForgetsFpd => iommu(&["fpd_counts_with_a_cached_entry"]),

        Mutant::HeldInterruptForgotten => iommu(&["an_event_that_nobody_can_send_stays_pending"]),
        Mutant::CompletionEventNotRepeated => iommu(&["a_lost_completion_event_is_sent_again"]),

        Mutant::DrainForgetsTheGate => iommu(&["a_held_page_request_is_not_drained"]),

        Mutant::IotlbIgnoresPasid => iommu(&["many_pasids_and_pages"]),
        Mutant::IotlbIgnoresDomain => iommu(&["pages_of_a_domain_take_no_first_stage"]),
        Mutant::PagingCachesIgnorePasid => iommu(&["paging_caches"]),
        Mutant::PagingCachesForgetRights => iommu(&["rights_above_a_kept_entry_count"]),
        Mutant::IotlbHitForgetsDirty
        | Mutant::PageInvalidationForgetsLargePages
        | Mutant::PageInvalidationOffByOne
        | Mutant::PageInvalidationKeepsPaths
        | Mutant::PasidInvalidationDoesNothing
        | Mutant::DomainInvalidationDoesNothing => ORACLE,
        Mutant::PasidCacheInvalidationDoesNothing => iommu(&["pasid_entries_stay_until"]),
        Mutant::ContextCacheInvalidationDoesNothing
        | Mutant::ContextInvalidationKeepsPasids
        | Mutant::FunctionMaskIgnored => iommu(&["a_function_mask_covers_neighbours"]),
        Mutant::RootPointerKeepsCaches => iommu(&["resets_and_new_root_tables"]),
        Mutant::PageRequestKeepsTranslation => iommu(&["a_page_request_makes_the_unit_look_again"]),

        Mutant::ForgetAccessed
        | Mutant::ForgetSecondStageDirty
        | Mutant::UserSupervisorIgnored
        | Mutant::WriteProtectIgnored
        | Mutant::SupervisorRequestsUnchecked
        | Mutant::CanonicalUnchecked
        | Mutant::FirstStageReservedUnchecked
        | Mutant::SecondStageReservedUnchecked
        | Mutant::NestedForgetsLevelFive
        | Mutant::NestedTablesUntranslated
        | Mutant::NestedIgnoresSecondStageRights => MODEL,
        Mutant::UpperWriteIgnored => iommu(&["rights_are_those_of_every_level"]),
        Mutant::LostRaceIsIgnored => iommu(&["a_lost_race_is_walked_again"]),
        Mutant::InterruptRangeUnchecked => iommu(&["translations_into_the_interrupt_range"]),

        Mutant::FaultNotRecorded | Mutant::FaultWithWrongPasid => iommu(&["a_record_tells_who_what_and_where"]),
        Mutant::FaultProcessingDisableIgnored => iommu(&["fpd_keeps_faults_out"]),
        Mutant::AnswerTwice => iommu(&["page_group_responses_reach_the_function"]),
        Mutant::OverflowWithoutStatus => iommu(&["a_full_queue_overflows"]),
        Mutant::PageRequestTailBeforeEntry => iommu(&["the_event_comes_after_the_request"]),

        Mutant::TlbHitIgnoresWrite => accelerator(&["a_right_that_grows_without_invalidation"]),
        Mutant::TlbIgnoresPasid => endpoint(&["pages_of_each_size_are_found_under_their_own_space"]),
        Mutant::TlbInvalidationForgetsLargePages => endpoint(&["a_small_range_takes_a_large_page"]),
        Mutant::TlbInvalidationOffByOne => endpoint(&["nothing_survives_its_invalidation"]),
        Mutant::SliceIsNotWaitedFor => endpoint(&["models::invalidation::no_access_after_an_answered"]),
        Mutant::SleepWithoutLooking => endpoint(&["models::invalidation::no_message_is_lost"]),
        Mutant::SleepWithoutDoorbells => accelerator(&["an_engine_sleeps_only_when_nothing_was_rung"]),
        Mutant::MemoryChangeDropsNothing => accelerator(&["a_change_of_the_memory_map_is_released"]),
        Mutant::UntranslatedOnlyIsKept => accelerator(&["what_may_not_be_cached"]),
        Mutant::BusMasterUnchecked => accelerator(&["configuration_space_gates_everything"]),

        Mutant::ResponseOfAnyPasid => accelerator(&["an_answer_for_another_process"]),
        Mutant::IndexReusedUnanswered => accelerator(&["an_outstanding_index_is_not_taken_again"]),
        Mutant::AllocationIgnored => accelerator(&["the_allocation_is_a_limit"]),
        Mutant::SuccessRetriedForever => accelerator(&["success_that_never_comes_true_ends"]),
        Mutant::InvalidIsNotNarrowed => accelerator(&["a_page_that_is_asked_for_ahead"]),

        Mutant::FenceIgnored | Mutant::DrainIgnored => accelerator(&["a_fence_starts_after"]),
        Mutant::DisableWithoutResponses => accelerator(&["a_disable_waits_for_answers"]),
        Mutant::DrainCommandIgnored => accelerator(&["drain_ends_when_what_was_there"]),
        Mutant::BytesDoneOffByOne | Mutant::OverlapUnchecked => DEVICE_MODEL,
        Mutant::CompletionBeforeData => accelerator(&["fill_keeps_its_phase"]),
        Mutant::ParkCountsDescriptorTwice => accelerator(&["a_user_queue_waits_for_its_rings"]),
        Mutant::CompletionRingOverrun => accelerator(&["a_full_completion_ring"]),
        Mutant::ResetKeepsQueues => accelerator(&["reset_leaves_nothing"]),

        Mutant::UnmapKeepsRegion | Mutant::RegionOverlapUnchecked => memory(&["agrees_with_the_naive_model"]),
        Mutant::ReadOnlyRegionWritten => memory(&["rights_are_the_regions_own"]),
        Mutant::LostBytesUnnoticed => memory(&["a_truncated_file_loses_its_memory"]),
        Mutant::KeptViewNotRenewed => memory(&["a_kept_view_is_taken_again"]),
        Mutant::UnitKeepsMemory => iommu(&["memory_that_is_gone_is_not_kept"]),
    }
}
