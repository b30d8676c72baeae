//! The driver's structures and request numbers, as in `uapi/svadev.h`: field for field, name for name.
#![allow(unsafe_code, reason = "ioctl wrappers are made by nix's macros; callers prove the pointers")]

/// Version of the interface that this crate was written for.
pub const UAPI_VERSION: u32 = 4;
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
/// `SVADEV_IOC_CREATE_QUEUE`.
pub const IOC_CREATE_QUEUE: u8 = 0x10;
/// `SVADEV_IOC_DESTROY_QUEUE`.
pub const IOC_DESTROY_QUEUE: u8 = 0x11;
/// `SVADEV_IOC_QUERY_QUEUE`.
pub const IOC_QUERY_QUEUE: u8 = 0x12;
/// `SVADEV_IOC_PLANT_SWAP`.
pub const IOC_PLANT_SWAP: u8 = 0x1f;
/// First number of the range for queues that a program drives itself.
pub const IOC_QUEUE_FIRST: u8 = 0x10;
/// Last number of the range for queues that a program drives itself.
pub const IOC_QUEUE_LAST: u8 = 0x17;
/// `SVADEV_SUBMIT_RAW`.
pub const SUBMIT_RAW: u32 = 1 << 0;
/// Most descriptors of one context in flight.
pub const MAX_IN_FLIGHT: u32 = 256;
/// Most descriptors of one context in flight or completed and not collected.
pub const MAX_UNCOLLECTED: u32 = 4096;
/// Most user queues of one context.
pub const MAX_USER_QUEUES: u32 = 16;
/// `SVADEV_QUEUE_RUNNING`.
pub const QUEUE_RUNNING: u32 = 0;
/// `SVADEV_QUEUE_HALTED`.
pub const QUEUE_HALTED: u32 = 1;
/// `SVADEV_QUEUE_LOST`.
pub const QUEUE_LOST: u32 = 2;
/// `SVADEV_STATE_RUNNING`.
pub const STATE_RUNNING: u32 = 0;
/// `SVADEV_STATE_RESETTING`.
pub const STATE_RESETTING: u32 = 1;
/// `SVADEV_STATE_FAILED`.
pub const STATE_FAILED: u32 = 2;
/// `SVADEV_MIN_INTERRUPT_INTERVAL_US`.
pub const MIN_INTERRUPT_INTERVAL_US: u32 = 20;
/// `SVADEV_MIN_INTERRUPT_COUNT`.
pub const MIN_INTERRUPT_COUNT: u32 = 16;

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
    pub max_user_queues: u32,
    pub user_queues: u32,
    pub features: u64,
    pub pci_domain: u32,
    pub state: u32,
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

/// `struct svadev_create_queue`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "documented in uapi/svadev.h")]
pub struct CreateQueueArgs {
    pub argsz: u32,
    pub flags: u32,
    pub sq: u64,
    pub cq: u64,
    pub sq_log2: u32,
    pub cq_log2: u32,
    pub eventfd: i32,
    pub queue: u32,
    pub doorbell_offset: u64,
    pub wake_offset: u64,
    pub priority: u32,
    pub interrupt_interval_us: u32,
    pub interrupt_count: u32,
    pub reserved: u32,
}

/// `struct svadev_destroy_queue`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "documented in uapi/svadev.h")]
pub struct DestroyQueueArgs {
    pub argsz: u32,
    pub flags: u32,
    pub queue: u32,
    pub reserved: u32,
}

/// `struct svadev_query_queue`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "documented in uapi/svadev.h and, decoded, in QueueQuery")]
pub struct QueryQueueArgs {
    pub argsz: u32,
    pub flags: u32,
    pub queue: u32,
    pub state: u32,
    pub error: u32,
    pub reserved: u32,
    pub fault_address: u64,
}

/// `struct svadev_plant_swap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "documented in uapi/svadev.h")]
pub struct PlantSwapArgs {
    pub argsz: u32,
    pub flags: u32,
    pub address: u64,
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
nix::ioctl_readwrite_bad!(
    /// `SVADEV_IOC_CREATE_QUEUE`.
    create_queue,
    nix::request_code_none!(IOC_MAGIC, IOC_CREATE_QUEUE),
    CreateQueueArgs
);
nix::ioctl_readwrite_bad!(
    /// `SVADEV_IOC_DESTROY_QUEUE`.
    destroy_queue,
    nix::request_code_none!(IOC_MAGIC, IOC_DESTROY_QUEUE),
    DestroyQueueArgs
);
nix::ioctl_readwrite_bad!(
    /// `SVADEV_IOC_QUERY_QUEUE`.
    query_queue,
    nix::request_code_none!(IOC_MAGIC, IOC_QUERY_QUEUE),
    QueryQueueArgs
);
nix::ioctl_readwrite_bad!(
    /// `SVADEV_IOC_PLANT_SWAP`.
    plant_swap,
    nix::request_code_none!(IOC_MAGIC, IOC_PLANT_SWAP),
    PlantSwapArgs
);
