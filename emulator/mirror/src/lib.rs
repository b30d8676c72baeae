//! Mirror mode: the second source of translations. The guest's driver fills page tables, and tells the engines through
//! a control block in guest memory what to drop.
//!
//! # What it knows, and what it must not know
//! It knows the layouts of [`svadev_spec::mirror`] and guest memory. It does not know a device TLB, a queue or a
//! descriptor: it tells its owner what to drop, which pages are there, and who may go on. It has no thread and no
//! clock. Everything in the control block and in the tables is the guest's, at any time: nothing that is read there is
//! trusted or read twice, and the device reads back no word that it wrote.
//!
//! # The parts
//! ```text
//!  driver in the guest                        one engine: Side
//!  tables ─────────────────────────────────▶ walk       address → page
//!  invalidation ring ──────────────────────▶ Follower   what to drop, and the acknowledgement
//!  event ring ◀────────────────────────────  Faults     who waits for which page
//!  response ring ──────────────────────────▶            who may go on
//!  error registers ◀───────────────────────  Face       the first error
//! ```
//! - [`ControlBlock`] is the header, checked once when the mirror is turned on.
//! - [`Side`] is what an engine owns. Its thread calls [`Side::arrive`] before it uses a translation, [`Side::look`]
//!   between two slices of work, and [`Side::rest`] before it sleeps.
//! - [`Face`] is what all threads of the function see.
//! - [`testing`] is the other side: what a driver does, for tests and for the simulated world.
//!
//! # The path through it
//! An address misses → [`Side::translate`] → a page, or nothing: [`Side::ask`] → event → driver → response →
//! [`Side::response`] → the address again. The driver unmaps → invalidation ring → [`Side::look`] → acknowledgement.
//!
//! # Where new things go
//! A field of the control block goes to `svadev_spec::mirror` and `words.rs`. `docs/mirror.md` is the protocol for
//! whoever writes a driver; `docs/design/0007-mirror.md` says why it is so.
#![cfg_attr(not(test), forbid(unsafe_code))]

mod block;
mod face;
mod faults;
mod follower;
mod side;
pub mod testing;
mod walk;
mod words;

#[cfg(test)]
mod models;
#[cfg(test)]
mod tests;

pub use block::{BadHeader, ControlBlock};
pub use face::{Face, Problem, Watch};
pub use faults::{Answer, Ask, Ticket};
pub use follower::Drop;
pub use side::{Lost, Side, SideState};
pub use walk::{Page, Place, Walk, walk};
