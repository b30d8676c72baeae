//! PCI Express configuration space (being written).
