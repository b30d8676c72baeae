//! Decoding of root, context and PASID tables (§3.4): from memory to a [`Context`] or an address space. Nothing is
//! cached here.
mod context;
mod entry;
mod pasid;

pub(crate) use context::{Context, ScalableContext};
pub(crate) use entry::{TableReader, fault};
