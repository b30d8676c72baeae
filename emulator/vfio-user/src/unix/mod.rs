//! The transport over a unix socket, and the loop of the thread that serves one.
mod owner;
mod serve;
pub(crate) mod socket;
mod spin;

pub use owner::Owner;
pub use serve::{Options, Stop, serve};
