//! User-space bindings of the svadev driver: what a guest program needs to hand its own pointers to the device.
//!
//! One [`Device`] is one open file and therefore one *context* of the driver: its binding, its work in flight, its
//! completions. The driver's header, `guest-tests/driver/uapi/svadev.h`, is the reference for every operation; a test
//! compares its structures, numbers and constants, and those of `svadev_hw.h`, with the ones here and in [`svadev_spec::device`].
//!
//! ```no_run
//! use svadev_guest::{Buffer, Descriptor, Device};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::open("/dev/svadev0")?;
//! let pasid = device.bind()?;
//! let (src, dst) = (Buffer::anonymous(65536)?, Buffer::anonymous(65536)?);
//! src.fill(0xa5);
//! // SAFETY: the device writes `dst` only, which no reference points into and which outlives the call.
//! let completion = unsafe { device.run(&Descriptor::copy(src.address(), dst.address(), 65536))? };
//! assert!(completion.is_success(), "PASID {pasid}: {completion}");
//! device.unbind()?;
//! # Ok(())
//! # }
//! ```
//!
//! A [`UserQueue`] submits without a system call: its rings are the program's own memory.
//!
//! # Soundness
//! The device writes memory behind the compiler's back, at any address that a descriptor names. So [`Device::submit`] and
//! [`Device::run`] are unsafe: the caller answers for what is written and when. [`Buffer`] makes that easy: it owns a mapping,
//! gives out addresses and volatile access to the bytes, and never a reference.

pub mod abi;
mod buffer;
mod completion;
mod descriptor;
mod device;
mod error;
mod user_queue;

#[cfg(test)]
mod header_tests;

pub use buffer::{Backing, Buffer, PAGE_SIZE};
pub use completion::{Completion, UnknownStatus};
pub use descriptor::Descriptor;
pub use device::{Device, Query, SubmitFlags};
pub use error::{Error, Result};
pub use svadev_spec::device::{Code, DescriptorFlags, FaultFlags, Priority, ScatterEntry, opcode};
pub use user_queue::{QueueQuery, QueueState, UserQueue, UserQueueOptions};
