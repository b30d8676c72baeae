//! Layouts, and only layouts: what stands in configuration space, in registers, in guest memory and on the wire.
//!
//! | module | document |
//! | --- | --- |
//! | [`pcie`] | PCI Express Base Specification 6.0: configuration space, PCIe, MSI-X, ATS, PRI and PASID capabilities |
//! | [`vtd`] | Intel Virtualization Technology for Directed I/O, Architecture Specification, revision 4.1 (June 2023) |
//! | [`vfio_user`] | vfio-user protocol specification 0.9.2 (QEMU `docs/interop/vfio-user.rst`) |
//! | [`device`] | this project's accelerator (`docs/device-reference.md`) |
//!
//! A layout is a typed view of an integer or of bytes. What a field *means* is decided in the crates above this one, but for
//! the order in which a doorbell page is accessed ([`doorbell`]): both its sides must keep to that.
#![no_std]
#![forbid(unsafe_code)]

pub mod device;
pub mod doorbell;
pub mod pcie;
pub mod vfio_user;
pub mod vtd;
