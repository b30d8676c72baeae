//! What became of a descriptor.
use std::fmt;

use svadev_spec::device::{self, Code, FaultFlags};

/// A completion carries a status that the ABI does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("completion of cookie {cookie:#x} has unknown status {status:#x}")]
pub struct UnknownStatus {
    /// The completion's cookie.
    pub cookie: u64,
    /// Its status.
    pub status: u16,
}

/// What became of a descriptor, with its status decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The descriptor's cookie.
    pub cookie: u64,
    /// How it ended.
    pub code: Code,
    /// What to know about the fault, if it was one.
    pub fault: FaultFlags,
    /// Bytes done from the start of the operands, in order.
    pub bytes_done: u64,
    /// CRC, offset of the first difference, or the fault's address: see the typed accessors.
    pub result: u64,
}

impl Completion {
    /// Decodes what the driver stored. Unknown fault bits are dropped, an unknown status is an error.
    pub fn from_raw(raw: &device::Completion) -> Result<Self, UnknownStatus> {
        let code = Code::from_raw(raw.status).ok_or(UnknownStatus { cookie: raw.cookie, status: raw.status })?;
        Ok(Self {
            cookie: raw.cookie,
            code,
            fault: FaultFlags::from_bits_truncate(raw.fault),
            bytes_done: raw.bytes_done,
            result: raw.result,
        })
    }

    /// The work was done, and found equal if it was a comparison.
    pub fn is_success(&self) -> bool {
        self.code == Code::Success
    }

    /// The address at fault, if the device knows it.
    pub fn fault_address(&self) -> Option<u64> {
        self.fault.contains(FaultFlags::ADDRESS_VALID).then_some(self.result)
    }

    /// The access at fault was a write.
    pub fn fault_is_write(&self) -> bool {
        self.fault.contains(FaultFlags::WRITE)
    }

    /// The checksum, if this was a successful CRC32C.
    pub fn crc32c(&self) -> Option<u32> {
        self.is_success().then(|| u32::try_from(self.result).ok()).flatten()
    }

    /// The offset of the first difference, if this was a COMPARE that found one.
    pub fn mismatch_offset(&self) -> Option<u64> {
        (self.code == Code::Mismatch).then_some(self.result)
    }
}

impl fmt::Display for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cookie {:#x}: {:?} after {} bytes", self.cookie, self.code, self.bytes_done)?;
        if let Some(address) = self.fault_address() {
            let access = if self.fault_is_write() { "write" } else { "read" };
            write!(f, ", {access} fault at {address:#x}")?;
        }
        Ok(())
    }
}
