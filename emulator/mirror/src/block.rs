//! The control block: where it is, and its header as it was when the mirror was turned on.
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::mirror::{ASID_BIT, Header, SPACES, SpaceEntry};
use zerocopy::{FromZeros, IntoBytes};

/// The header could not be read, or a field is out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHeader;

/// A control block whose header was found in order. Later changes of the header mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlBlock {
    base: u64,
    header: Header,
}

impl ControlBlock {
    /// Reads the header at `base`, once, for a function with so many engines.
    pub fn read<M: GuestMemory + ?Sized>(memory: &M, base: u64, engines: u8) -> Result<Self, BadHeader> {
        let mut header = Header::new_zeroed();
        memory.read(GuestAddress(base), header.as_mut_bytes()).map_err(|_| BadHeader)?;
        let fits = header.is_valid(engines.into()) && base.checked_add(header.bytes()).is_some();
        if fits && base.is_multiple_of(0x1000) { Ok(Self { base, header }) } else { Err(BadHeader) }
    }

    /// Guest-physical address of the block.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Guest-physical address of a part of the block.
    pub(crate) fn at(&self, offset: u64) -> GuestAddress {
        // `read` has checked that the whole block fits.
        GuestAddress(self.base + offset)
    }

    /// Guest-physical address of an ASID's entry in the table of address spaces, if the table is that long.
    pub(crate) fn space(&self, asid: u32) -> Option<GuestAddress> {
        let index = u64::from(asid.checked_sub(ASID_BIT)?);
        let size = size_of::<SpaceEntry>() as u64;
        (index < 1 << self.header.spaces_log2).then(|| self.at(SPACES + index * size))
    }
}
