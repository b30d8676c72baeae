//! What an endpoint asks of the device around it, and of the platform below it.
use std::fmt::Debug;
use std::marker::PhantomData;

use svadev_fabric::Upstream;
use svadev_memory::GuestMemory;

/// What a device's engines run on. One bound in place of two.
pub trait Platform {
    /// Guest memory: what translations lead to.
    type Memory: GuestMemory + ?Sized;
    /// The IOMMU in front of the function.
    type Upstream: Upstream + ?Sized;
}

/// The platform with memory `M` and IOMMU `U`.
#[derive(Debug)]
pub struct On<M: ?Sized, U: ?Sized>(PhantomData<M>, PhantomData<U>);

impl<M: GuestMemory + ?Sized, U: Upstream + ?Sized> Platform for On<M, U> {
    type Memory = M;
    type Upstream = U;
}

/// What a device mails to its own engines, beside what every endpoint does.
pub trait Mail: Debug + Send {
    /// What the device answers once every engine has acted: see [`Answer::Device`](crate::Answer::Device).
    type Answer: Copy + Debug + PartialEq + Eq + Send + Sync + 'static;
    /// Whether there is nothing that an engine must act on.
    fn is_empty(&self) -> bool;
}

/// A device without mail of its own.
impl Mail for () {
    type Answer = ();
    fn is_empty(&self) -> bool {
        true
    }
}

/// What an endpoint does to the world around it. Called from any thread, sometimes with the IOMMU's lock held: no
/// method may block or call back into the endpoint.
pub trait Ports: Send + Sync {
    /// Wakes an engine's thread, now or the next time it goes to sleep (as an eventfd does).
    fn wake(&self, engine: usize);
    /// No access through memory windows from before [`Endpoint::memory_changed`](crate::Endpoint::memory_changed)
    /// with this token can still be under way. Called once for each that returned `InvalidateAck::Pending`.
    fn memory_released(&self, token: u64);
}
