//! Layouts of configuration space, registers, tables in guest memory, and messages, each with its document and section.
//!
//! | module | document |
//! | --- | --- |
//! | [`pcie`] | PCI Express Base Specification 6.0: configuration space, PCIe, MSI-X, ATS, PRI and PASID capabilities |
//! | [`vtd`] | Intel Virtualization Technology for Directed I/O, Architecture Specification, revision 4.1 (June 2023) |
//! | [`vfio_user`] | vfio-user protocol specification 0.9.2 (QEMU `docs/interop/vfio-user.rst`) |
//! | [`device`] | this project's accelerator (`docs/device-reference.md`) |
//! | [`mirror`] | the accelerator's mirror mode (`docs/mirror.md`) |
//!
//! A layout is a typed view of an integer or of bytes. This crate knows names, offsets, bits and sizes. It must not
//! know what a field causes: the crates above decide that. The one algorithm here is the order in which a doorbell page
//! is accessed ([`doorbell`]), since the device, the guest library and the kernel module must all keep it.
//!
//! The path: a crate reads a word or a message and makes the layout's type of it (`From<u64>`, `FromBytes`). It tests
//! or changes fields by name, and turns the value into a word or bytes again.
//!
//! Where new things go: a register or table entry in the module of its document, with the section in its doc line; a
//! register, opcode or descriptor field of our device in [`device`], and in `docs/device-reference.md`.
#![no_std]
#![forbid(unsafe_code)]

pub mod device;
pub mod doorbell;
pub mod mirror;
pub mod pcie;
pub mod vfio_user;
pub mod vtd;
