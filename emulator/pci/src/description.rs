//! What a function is made of, as values: the input of [`ConfigSpace`](crate::ConfigSpace).
use svadev_spec::pcie::header;

/// Who a function says it is (§7.5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID, also the subsystem's.
    pub vendor: u16,
    /// Device ID, also the subsystem's.
    pub device: u16,
    /// Class code, 24 bits: base class, subclass, programming interface.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
}

/// A memory BAR (§7.5.1.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Bytes: a power of two, 16 to 1 GiB.
    pub size: u64,
    /// It has a 64-bit address, and so takes two base address registers.
    pub wide: bool,
    /// It is memory: reads have no side effects, and writes may be merged.
    pub prefetchable: bool,
}

/// MSI-X capability (§7.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// Vectors, 1 to 2048.
    pub vectors: u16,
    /// BAR of the table and of the pending-bit array.
    pub bar: u8,
    /// Offset of the table in that BAR, bytes: a multiple of 8.
    pub table_offset: u32,
    /// Distance of the pending-bit array from the table, bytes: a multiple of 8, behind the table.
    pub pending_offset: u32,
}

/// ATS capability (§10.5.1): page-aligned requests, global invalidates, no limit on outstanding invalidations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ats;

/// Page request capability (§10.5.2): responses carry a PASID where their requests did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pri {
    /// Most page requests that can be outstanding.
    pub capacity: u32,
}

/// PASID capability (§7.8.9), without execute and privileged requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pasid {
    /// PASID width, bits: at most 20.
    pub width: u8,
}

/// A function: identity, BARs, capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Who it is.
    pub identity: Identity,
    /// Its BARs by index. The upper half of a 64-bit BAR is `None`.
    pub bars: [Option<Bar>; header::BARS],
    /// Message-signalled interrupts.
    pub msi_x: Option<MsiX>,
    /// Address translation services.
    pub ats: Option<Ats>,
    /// Page request interface.
    pub pri: Option<Pri>,
    /// Requests with a PASID.
    pub pasid: Option<Pasid>,
    /// Software can reset the function by function level reset (§6.6.2).
    pub function_level_reset: bool,
}

impl Description {
    /// A function with function level reset, without BARs and without capabilities but PCI Express.
    pub const fn new(identity: Identity) -> Self {
        Self {
            identity,
            bars: [None; header::BARS],
            msi_x: None,
            ats: None,
            pri: None,
            pasid: None,
            function_level_reset: true,
        }
    }

    /// Without function level reset.
    #[must_use]
    pub const fn without_function_level_reset(mut self) -> Self {
        self.function_level_reset = false;
        self
    }

    /// With a BAR. Panics if there is no such index.
    #[must_use]
    pub const fn with_bar(mut self, index: u32, bar: Bar) -> Self {
        self.bars[index as usize] = Some(bar);
        self
    }
}
