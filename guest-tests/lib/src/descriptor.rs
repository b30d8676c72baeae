//! Descriptors and how to build them.
use svadev_spec::device::{self, DescriptorFlags, DescriptorPasid, opcode};

/// One piece of work. Addresses are plain numbers: tests hand over wild ones on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Descriptor {
    /// The device's own layout, for fields that no builder sets.
    pub raw: device::Descriptor,
}

impl Descriptor {
    /// An empty descriptor of any opcode, known or not.
    pub fn new(opcode: u8) -> Self {
        Self { raw: device::Descriptor { opcode, ..Default::default() } }
    }

    /// Completes at once.
    pub fn nop() -> Self {
        Self::new(opcode::NOP)
    }

    /// Completes when everything before it in the queue has completed, other programs' work included.
    pub fn drain() -> Self {
        Self::new(opcode::DRAIN)
    }

    /// Copies `length` bytes from `src` to `dst`.
    pub fn copy(src: u64, dst: u64, length: u64) -> Self {
        Self::new(opcode::COPY).with_src(src).with_dst(dst).with_length(length)
    }

    /// Repeats the 8 bytes of `pattern`, lowest first, over `length` bytes at `dst`.
    pub fn fill(dst: u64, length: u64, pattern: u64) -> Self {
        Self::new(opcode::FILL).with_dst(dst).with_length(length).with_operand(pattern)
    }

    /// Compares `length` bytes at `left` and `right`.
    pub fn compare(left: u64, right: u64, length: u64) -> Self {
        Self::new(opcode::COMPARE).with_src(left).with_dst(right).with_length(length)
    }

    /// CRC-32C of `length` bytes at `src`.
    pub fn crc32c(src: u64, length: u64) -> Self {
        Self::new(opcode::CRC32C).with_src(src).with_length(length)
    }

    /// Translates `length` bytes at `address` ahead, for writing or for reading: pages that are not there are asked for, and later
    /// accesses hit the device's cache.
    pub fn prefetch(address: u64, length: u64, write: bool) -> Self {
        Self::new(opcode::PREFETCH).with_src(address).with_length(length).with_operand(write.into())
    }

    /// Makes the device forget its translations of `length` bytes at `address`.
    pub fn drop_translations(address: u64, length: u64) -> Self {
        Self::new(opcode::DROP).with_src(address).with_length(length)
    }

    /// Sets the number that comes back in the completion.
    pub fn with_cookie(mut self, cookie: u64) -> Self {
        self.raw.cookie = cookie;
        self
    }

    /// Sets the source address.
    pub fn with_src(mut self, address: u64) -> Self {
        self.raw.src = address;
        self
    }

    /// Sets the destination address.
    pub fn with_dst(mut self, address: u64) -> Self {
        self.raw.dst = address;
        self
    }

    /// Makes the source a list: `entries` of [`crate::ScatterEntry`] at `address`. Their lengths add up to the descriptor's.
    pub fn with_src_list(mut self, address: u64, entries: u32) -> Self {
        self.raw.src = address;
        self.raw.src_entries = entries;
        self.with_flags(DescriptorFlags::SRC_LIST)
    }

    /// Makes the destination a list: `entries` of [`crate::ScatterEntry`] at `address`.
    pub fn with_dst_list(mut self, address: u64, entries: u32) -> Self {
        self.raw.dst = address;
        self.raw.dst_entries = entries;
        self.with_flags(DescriptorFlags::DST_LIST)
    }

    /// Sets the length, bytes.
    pub fn with_length(mut self, length: u64) -> Self {
        self.raw.length = length;
        self
    }

    /// Sets FILL's pattern or CRC32C's starting value.
    pub fn with_operand(mut self, operand: u64) -> Self {
        self.raw.operand = operand;
        self
    }

    /// Adds flags to those that are set.
    pub fn with_flags(mut self, flags: DescriptorFlags) -> Self {
        self.raw.flags |= flags.bits();
        self
    }

    /// On a page that is not there: stop and report, instead of asking for the page.
    pub fn stop_on_fault(self) -> Self {
        self.with_flags(DescriptorFlags::STOP_ON_FAULT)
    }

    /// Starts only when everything before it in the queue has completed.
    pub fn fenced(self) -> Self {
        self.with_flags(DescriptorFlags::FENCE)
    }

    /// Names a PASID, or none for the function's own DMA addresses. Only for [`crate::SubmitFlags::RAW`]; the driver refuses
    /// it otherwise. Bits above the PASID's 20 are cut off.
    pub fn with_pasid(mut self, pasid: Option<u32>) -> Self {
        self.raw.pasid = match pasid {
            Some(pasid) => DescriptorPasid::new().with_pasid(pasid & 0xf_ffff).with_valid(true),
            None => DescriptorPasid::new(),
        };
        self
    }
}

impl From<device::Descriptor> for Descriptor {
    fn from(raw: device::Descriptor) -> Self {
        Self { raw }
    }
}
