//! Identifiers and kinds of addresses, each a type of its own, so that the compiler distinguishes a guest-physical
//! address from a virtual one.
use core::fmt;

/// A number that does not fit into its identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:#x} does not fit a {what} of {bits} bits")]
pub struct IdError {
    /// Which identifier.
    pub what: &'static str,
    /// Its width.
    pub bits: u32,
    /// The number.
    pub value: u64,
}

/// Bus (15:8), device (7:3), function (2:0): a PCIe Requester ID, the *source-id* of the VT-d specification.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf(pub u16);

impl Bdf {
    /// From its parts; `None` when device is over 31 or function over 7.
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self((bus as u16) << 8 | (device as u16) << 3 | function as u16))
    }
    /// Bus number.
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }
    /// Device and function number in one byte.
    pub const fn devfn(self) -> u8 {
        self.0.to_be_bytes()[1]
    }
    /// Device number, 0 to 31.
    pub const fn device(self) -> u8 {
        self.devfn() >> 3
    }
    /// Function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.devfn() & 7
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Process Address Space ID, 20 bits (PCIe 6.0 §6.20).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(u32);

impl Pasid {
    /// The largest PASID.
    pub const MAX: Self = Self(0xf_ffff);

    /// From a number that must fit 20 bits.
    pub const fn new(value: u32) -> Result<Self, IdError> {
        if value > Self::MAX.0 {
            return Err(IdError { what: "PASID", bits: 20, value: value as u64 });
        }
        Ok(Self(value))
    }
    /// The low 20 bits of a field that is wider than a PASID.
    pub const fn from_low_bits(value: u64) -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "masked to 20 bits")]
        Self((value & Self::MAX.0 as u64) as u32)
    }
    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A source of translations: an IOMMU, or something in its place. It answers a function's translation requests, and
/// invalidates its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u8);

impl SourceId {
    /// The IOMMU in front of the function, asked by ATS.
    pub const UNIT: Self = Self(0);
    /// Identity: an address is guest-physical. For a function without an IOMMU.
    pub const IDENTITY: Self = Self(1);
    /// The mirror: tables that the guest's driver keeps for the function.
    pub const MIRROR: Self = Self(2);
    /// The device's own memory: an address is a device address.
    pub const DEVICE: Self = Self(3);
}

/// Page Request Group Index, 9 bits (PCIe 6.0 §10.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrgIndex(u16);

impl PrgIndex {
    /// How many there are.
    pub const COUNT: usize = 512;

    /// From a number that must fit 9 bits.
    pub const fn new(value: u16) -> Result<Self, IdError> {
        if value > 0x1ff {
            return Err(IdError { what: "page request group index", bits: 9, value: value as u64 });
        }
        Ok(Self(value))
    }
    /// The low 9 bits of a field that is wider than an index.
    pub const fn from_low_bits(value: u64) -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "masked to 9 bits")]
        Self((value & 0x1ff) as u16)
    }
    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `bytes` further on, or `None` where that wraps.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
            /// The address of the 4 KiB page it is in.
            pub const fn page(self) -> Self {
                Self(self.0 & !0xfff)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// An address as a function puts it into a request: a process's virtual address under a PASID, an I/O virtual
    /// address without one.
    Iova
}
address! {
    /// A guest-physical address: what a translation yields and what the guest's tables are made of.
    Gpa
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bdf_parts_round_trip() {
        let bdf = Bdf::new(0xab, 31, 7).unwrap();
        assert_eq!((bdf.bus(), bdf.device(), bdf.function(), bdf.devfn()), (0xab, 31, 7, 0xff));
        assert_eq!(bdf.to_string(), "ab:1f.7");
        assert_eq!((Bdf::new(0, 32, 0), Bdf::new(0, 0, 8)), (None, None));
    }

    #[test]
    fn identifiers_refuse_what_does_not_fit() {
        assert_eq!(Pasid::new(0xf_ffff).unwrap(), Pasid::MAX);
        assert_eq!(Pasid::new(0x10_0000).unwrap_err().to_string(), "0x100000 does not fit a PASID of 20 bits");
        assert_eq!(Pasid::from_low_bits(0xfff_0001).get(), 0xf_0001);
        assert!(PrgIndex::new(0x200).is_err());
    }
}
