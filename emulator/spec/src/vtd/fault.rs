//! Fault conditions (chapter 7) and the fault recording register.
use bitfield_struct::bitfield;

/// Why a request was blocked: the fault reason codes for DMA remapping (§7.1.3, tables of fault conditions).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FaultReason {
    /// LRT.2: root entry not present (legacy mode).
    LegacyRootNotPresent = 0x01,
    /// LCT.2: context entry not present (legacy mode).
    LegacyContextNotPresent = 0x02,
    /// LCT.4: context entry invalid (legacy mode).
    LegacyContextInvalid = 0x03,
    /// LGN.1: address beyond the width of the second-stage tables (legacy mode).
    LegacyAddressTooWide = 0x04,
    /// LGN.2: no right to write (legacy mode).
    LegacyNoWrite = 0x05,
    /// LGN.3: no right to read (legacy mode).
    LegacyNoRead = 0x06,
    /// LSS.1: a second-stage entry could not be read (legacy mode).
    LegacySecondStageAccess = 0x07,
    /// LRT.1: a root entry could not be read (legacy mode).
    LegacyRootAccess = 0x08,
    /// LCT.1: a context entry could not be read (legacy mode).
    LegacyContextAccess = 0x09,
    /// LRT.3: reserved bits in a root entry (legacy mode).
    LegacyRootReserved = 0x0a,
    /// LCT.3: reserved bits in a context entry (legacy mode).
    LegacyContextReserved = 0x0b,
    /// LSS.2: reserved bits in a second-stage entry (legacy mode).
    LegacySecondStageReserved = 0x0c,
    /// LCT.5: translation requests and translated requests are blocked by the context entry (legacy mode).
    LegacyContextBlocks = 0x0d,
    /// LGN.4: the address is in the interrupt range (legacy mode).
    LegacyInterruptAddress = 0x0e,
    /// RTA.1: reserved translation table mode.
    RootTableMode = 0x30,
    /// RTA.2: request with PASID in legacy mode.
    PasidInLegacyMode = 0x31,
    /// RTA.3: page request in legacy mode.
    PageRequestInLegacyMode = 0x32,
    /// SRT.1: a root entry could not be read.
    RootAccess = 0x38,
    /// SRT.2: root entry not present.
    RootNotPresent = 0x39,
    /// SRT.3: reserved bits in a root entry.
    RootReserved = 0x3a,
    /// SCT.1: a context entry could not be read.
    ContextAccess = 0x40,
    /// SCT.2: context entry not present.
    ContextNotPresent = 0x41,
    /// SCT.3: reserved bits in a context entry.
    ContextReserved = 0x42,
    /// SCT.4: context entry invalid.
    ContextInvalid = 0x43,
    /// SCT.5: DTE is clear: translation requests and translated requests are blocked.
    DeviceTlbDisabled = 0x44,
    /// SCT.6: PASIDE is clear: requests with PASID are blocked.
    PasidDisabled = 0x45,
    /// SCT.7: the PASID is beyond the PASID directory.
    PasidTooLarge = 0x46,
    /// SCT.8: PRE is clear: page requests are blocked.
    PageRequestDisabled = 0x47,
    /// SCT.9: RID_PASID is beyond the PASID directory.
    RidPasidInvalid = 0x48,
    /// SPD.1: a PASID directory entry could not be read.
    PasidDirectoryAccess = 0x50,
    /// SPD.2: PASID directory entry not present.
    PasidDirectoryNotPresent = 0x51,
    /// SPD.3: reserved bits in a PASID directory entry.
    PasidDirectoryReserved = 0x52,
    /// SPT.1: a PASID table entry could not be read.
    PasidTableAccess = 0x58,
    /// SPT.2: PASID table entry not present.
    PasidTableNotPresent = 0x59,
    /// SPT.3: reserved bits in a PASID table entry.
    PasidTableReserved = 0x5a,
    /// SPT.4: PASID table entry invalid.
    PasidTableInvalid = 0x5b,
    /// SPT.5: ERE is clear: execute requests are blocked.
    ExecuteDisabled = 0x5c,
    /// SPT.6: SRE is clear: supervisor requests are blocked.
    SupervisorDisabled = 0x5d,
    /// SFS.1: a first-stage entry below the top could not be read.
    FirstStageAccess = 0x70,
    /// SFS.2: first-stage entry not present.
    FirstStageNotPresent = 0x71,
    /// SFS.3: reserved bits in a first-stage entry.
    FirstStageReserved = 0x72,
    /// SFS.4: a first-stage top-level entry could not be read: the pointer in the PASID table entry is wrong.
    FirstStagePointer = 0x73,
    /// SFS.5: nested: the address of a first-stage entry is beyond the width of the second-stage tables.
    NestedEntryAddressTooWide = 0x74,
    /// SFS.6: nested: no second-stage right to read a top-level first-stage entry.
    NestedTopEntryNoRead = 0x75,
    /// SFS.7: nested: no second-stage right to read a first-stage entry.
    NestedEntryNoRead = 0x76,
    /// SFS.8: nested: no second-stage right to set accessed or dirty in a first-stage entry.
    NestedEntryNoWrite = 0x77,
    /// SSS.1: a second-stage entry below the top could not be read.
    SecondStageAccess = 0x78,
    /// SSS.2: second-stage entry not present.
    SecondStageNotPresent = 0x79,
    /// SSS.3: reserved bits in a second-stage entry.
    SecondStageReserved = 0x7a,
    /// SSS.4: a second-stage top-level entry could not be read: the pointer in the PASID table entry is wrong.
    SecondStagePointer = 0x7b,
    /// SSS.5: accessed or dirty must be set in a second-stage entry, and page walks do not snoop.
    SecondStageUpdateNotSnooped = 0x7c,
    /// SSS.6: accessed or dirty could not be set in a second-stage entry.
    SecondStageUpdateFailed = 0x7d,
    /// SGN.1: the address is not canonical for the first-stage tables.
    NotCanonical = 0x80,
    /// SGN.2: user request to a supervisor page.
    UserToSupervisor = 0x81,
    /// SGN.3: no right to execute.
    NoExecute = 0x82,
    /// SGN.4: the address is beyond the host address width (pass-through, translated requests).
    AddressBeyondHost = 0x83,
    /// SGN.5: the address is beyond the width of the second-stage tables.
    AddressTooWide = 0x84,
    /// SGN.6: no right to write.
    NoWrite = 0x85,
    /// SGN.7: no right to read.
    NoRead = 0x86,
    /// SGN.8: the address, or what it translates to, or a translated request, is in the interrupt range.
    InterruptAddress = 0x87,
    /// SFS.9: accessed or dirty must be set in a first-stage entry, and page walks do not snoop.
    FirstStageUpdateNotSnooped = 0x90,
    /// SFS.10: accessed or dirty could not be set in a first-stage entry.
    FirstStageUpdateFailed = 0x91,
}

/// What a translation request that meets a fault condition is answered (§4.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslationResponse {
    /// Success, with no right at all. Not recorded: a page request may mend it (§7.2).
    NoRights,
    /// Unsupported Request, and the fault is recorded.
    UnsupportedRequest,
    /// Completer Abort, and the fault is recorded.
    CompleterAbort,
}

impl FaultReason {
    /// The code in the FR field of a fault recording register.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether a set FPD bit keeps the fault from being recorded: those found with a context entry at hand (§7.1.3,
    /// *qualified*).
    pub const fn is_qualified(self) -> bool {
        use FaultReason as F;
        !matches!(
            self,
            F::LegacyRootNotPresent
                | F::LegacyRootAccess
                | F::LegacyContextAccess
                | F::LegacyRootReserved
                | F::RootTableMode
                | F::PasidInLegacyMode
                | F::PageRequestInLegacyMode
                | F::RootAccess
                | F::RootNotPresent
                | F::RootReserved
                | F::ContextAccess
        )
    }

    /// The answer to a translation request that ends in this fault (§4.2.3): conditions of the translation itself can
    /// be mended by a page request, a missing or blocking structure is an Unsupported Request, a broken one a Completer
    /// Abort.
    pub const fn translation_response(self) -> TranslationResponse {
        use FaultReason as F;
        match self {
            F::LegacyAddressTooWide
            | F::LegacyNoWrite
            | F::LegacyNoRead
            | F::ExecuteDisabled
            | F::SupervisorDisabled
            | F::FirstStageNotPresent
            | F::NestedEntryAddressTooWide
            | F::NestedTopEntryNoRead
            | F::NestedEntryNoRead
            | F::NestedEntryNoWrite
            | F::SecondStageNotPresent
            | F::NotCanonical
            | F::UserToSupervisor
            | F::NoExecute
            | F::AddressBeyondHost
            | F::AddressTooWide
            | F::NoWrite
            | F::NoRead => TranslationResponse::NoRights,
            F::LegacyRootNotPresent
            | F::LegacyContextNotPresent
            | F::LegacyContextBlocks
            | F::LegacyInterruptAddress
            | F::RootTableMode
            | F::PasidInLegacyMode
            | F::PageRequestInLegacyMode
            | F::RootNotPresent
            | F::ContextNotPresent
            | F::DeviceTlbDisabled
            | F::PasidDisabled
            | F::PasidTooLarge
            | F::PageRequestDisabled
            | F::PasidDirectoryNotPresent
            | F::PasidTableNotPresent
            | F::InterruptAddress => TranslationResponse::UnsupportedRequest,
            _ => TranslationResponse::CompleterAbort,
        }
    }
}

/// Low half of a fault recording register (FRCD, 128 bits, §11.4.7.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FaultRecordLow {
    #[bits(12)]
    __: u16,
    /// FI: the address, in units of 4 KiB.
    #[bits(52)]
    pub fault_info: u64,
}

/// High half of a fault recording register (FRCD, 128 bits, §11.4.7.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FaultRecordHigh {
    /// SID: who.
    pub source_id: u16,
    #[bits(12)]
    __: u16,
    /// T2: with T1, the kind of request: 00 write, 01 page request, 10 read, 11 atomic.
    pub type2: bool,
    /// PRIV: supervisor request.
    pub privileged: bool,
    /// EXE: execute request.
    pub execute: bool,
    /// PP: there was a PASID.
    pub pasid_present: bool,
    /// FR: see [`FaultReason`].
    pub fault_reason: u8,
    /// PV: the PASID.
    #[bits(20)]
    pub pasid: u32,
    /// AT: address type of the request: 00 untranslated, 01 translation request, 10 translated.
    #[bits(2)]
    pub address_type: u8,
    /// T1: see `type2`.
    pub type1: bool,
    /// F, RW1C: the record holds a fault.
    pub fault: bool,
}
