//! An address in an address space.
use svadev_fabric::{Access, Pasid};

/// An address that a piece of work needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address space.
    pub space: Option<Pasid>,
    /// The address, bytes.
    pub iova: u64,
    /// It is written to, not read.
    pub write: bool,
}

impl Target {
    /// What is done there, as a request says it.
    #[inline]
    pub fn access(&self) -> Access {
        if self.write { Access::WRITE } else { Access::READ }
    }
}
