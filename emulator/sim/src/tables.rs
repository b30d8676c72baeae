//! The tables of the simulated kernel, in its memory.
use std::sync::Arc;

use svadev_memory::Ram;
pub use svadev_tables::{Binding, Stages, second_stage};

/// First-stage page tables of one address space.
pub type PageTables = svadev_tables::PageTables<Arc<Ram>>;

/// Root, context and PASID tables of the unit.
pub type DeviceTables = svadev_tables::DeviceTables<Arc<Ram>>;
