//! A function and its engines, driven by hand against a mock IOMMU.
mod ahead;
mod descriptors;
mod device_memory;
mod faults;
mod invalidation;
mod lifecycle;
mod mirror;
mod random;
mod registers;
mod rings;
mod service;
mod untranslated;
mod world;
