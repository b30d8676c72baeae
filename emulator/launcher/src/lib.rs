//! The launcher takes a guest from the user's choices to its exit status.
//!
//! It knows topologies, the kit, kernels, guest images, QEMU, and what a guest says on its channels. It starts the
//! backend (`svadev-host`) of a topology. It must not know the command line: choices come in as plain structures, and
//! no crate for arguments is among its dependencies.
//!
//! The path: a [`topology`] and [`guest::HostOptions`] go into [`guest::run()`]. That finds QEMU and the kernel
//! ([`kit`], [`kernel`]), makes the initial file system ([`guest_image`]), decides about KVM ([`kvm`]) and starts the
//! [`backend`]. [`run::run`] then starts QEMU ([`qemu`]) and follows the guest until it ends. An error carries its
//! [`exit::Exit`].
//!
//! Where new things go: a key of the topology in [`topology`], an argument of QEMU in [`qemu::args`], a file of the
//! guest in [`guest_image`], a message of the guest in [`control`], a rule about when a run ends in [`run`].

#[macro_use]
pub mod say;

pub mod backend;
pub mod console;
pub mod control;
pub mod dmar;
pub mod doctor;
pub mod exit;
pub mod figures;
pub mod files;
pub mod guest;
pub mod guest_image;
pub mod kernel;
pub mod kernel_log;
pub mod kernel_options;
pub mod kit;
pub mod ktap;
pub mod kvm;
pub mod qemu;
pub mod results;
pub mod run;
pub mod runtime;
pub mod service;
pub mod topology;
pub mod unit_options;
