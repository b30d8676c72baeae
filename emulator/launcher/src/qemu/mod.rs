//! QEMU: its command line, its process, its monitor, and where its firmware puts our BAR.
pub mod args;
pub mod placement;
pub mod process;
pub mod qmp;
