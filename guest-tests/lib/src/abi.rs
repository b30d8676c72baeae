//! The driver's structures and request numbers, as in `uapi/svadev.h`: field for field, name for name.
#![allow(unsafe_code, reason = "ioctl wrappers are made by nix's macros; callers prove the pointers")]

/// Version of the interface that this crate was written for.
pub const UAPI_VERSION: u32 = 1;
/// Type of every request number.
pub const IOC_MAGIC: u8 = 0xbb;
/// `SVADEV_IOC_QUERY`.
pub const IOC_QUERY: u8 = 0x00;
/// `SVADEV_IOC_BIND`.
pub const IOC_BIND: u8 = 0x01;
/// `SVADEV_IOC_UNBIND`.
pub const IOC_UNBIND: u8 = 0x02;
/// `SVADEV_IOC_SUBMIT`.
pub const IOC_SUBMIT: u8 = 0x03;
/// `SVADEV_IOC_WAIT`.
pub const IOC_WAIT: u8 = 0x04;
/// First number kept for queues that a program drives itself.
pub const IOC_QUEUE_FIRST: u8 = 0x10;
/// Last number kept for queues that a program drives itself.
pub const IOC_QUEUE_LAST: u8 = 0x17;
/// `SVADEV_SUBMIT_RAW`.
pub const SUBMIT_RAW: u32 = 1 << 0;
/// Most descriptors of one context in flight.
pub const MAX_IN_FLIGHT: u32 = 256;
/// Most descriptors of one context in flight or completed and not collected.
pub const MAX_UNCOLLECTED: u32 = 4096;

/// `struct svadev_query`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "documented in uapi/svadev.h and, decoded, in Query")]
pub struct QueryArgs {
    pub argsz: u32,
    pub flags: u32,
    pub uapi_version: u32,
    pub device_version: u32,
    pub opcodes: u64,
    pub max_length: u64,
    pub max_scatter: u32,
    pub max_in_flight: u32,
    pub max_uncollected: u32,
    pub queues: u32,
    pub engines: u32,
    pub pci_address: u32,
    pub pasid: u32,
    pub in_flight: u32,
    pub uncollected: u32,
    pub resets: u32,
}

/// `struct svadev_bind`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "documented in uapi/svadev.h")]
pub struct BindArgs {
    pub argsz: u32,
    pub flags: u32,
    pub pasid: u32,
    pub reserved: u32,
}

/// `struct svadev_unbind`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "documented in uapi/svadev.h")]
pub struct UnbindArgs {
    pub argsz: u32,
    pub flags: u32,
}

/// `struct svadev_submit`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "documented in uapi/svadev.h")]
pub struct SubmitArgs {
    pub argsz: u32,
    pub flags: u32,
    pub descs: u64,
    pub count: u32,
    pub reserved: u32,
}

/// `struct svadev_wait`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "documented in uapi/svadev.h")]
pub struct WaitArgs {
    pub argsz: u32,
    pub flags: u32,
    pub completions: u64,
    pub timeout_ns: i64,
    pub capacity: u32,
    pub min: u32,
}

// The requests carry no size (`_IO`): the structures do, in `argsz`. So a raw pointer goes in, whatever its type. These are
// public for tests that hand over broken structures.
nix::ioctl_readwrite_bad!(
    /// `SVADEV_IOC_QUERY`.
    query,
    nix::request_code_none!(IOC_MAGIC, IOC_QUERY),
    QueryArgs
);
nix::ioctl_readwrite_bad!(
    /// `SVADEV_IOC_BIND`.
    bind,
    nix::request_code_none!(IOC_MAGIC, IOC_BIND),
    BindArgs
);
nix::ioctl_readwrite_bad!(
    /// `SVADEV_IOC_UNBIND`.
    unbind,
    nix::request_code_none!(IOC_MAGIC, IOC_UNBIND),
    UnbindArgs
);
nix::ioctl_readwrite_bad!(
    /// `SVADEV_IOC_SUBMIT`.
    submit,
    nix::request_code_none!(IOC_MAGIC, IOC_SUBMIT),
    SubmitArgs
);
nix::ioctl_readwrite_bad!(
    /// `SVADEV_IOC_WAIT`.
    wait,
    nix::request_code_none!(IOC_MAGIC, IOC_WAIT),
    WaitArgs
);
