//! A function and its engines, driven by hand against a mock IOMMU.
mod descriptors;
mod world;
