//! The targets, one a file.
mod accelerator_bars;
mod config_space;
mod descriptors;
mod invalidation_queue;
mod mirror;
mod tables;
mod unit_registers;
mod vfio_user;

use crate::Target;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "vfio_user",
        about: "bytes and descriptors of a VMM's connection",
        run: vfio_user::run,
        seeds: vfio_user::seeds,
        memory: 16 << 20,
    },
    Target {
        name: "config_space",
        about: "PCI configuration space of both kinds of function",
        run: config_space::run,
        seeds: config_space::seeds,
        memory: 2 << 20,
    },
    Target {
        name: "unit_registers",
        about: "registers of the IOMMU, with traffic between",
        run: unit_registers::run,
        seeds: unit_registers::seeds,
        memory: 2 << 20,
    },
    Target {
        name: "invalidation_queue",
        about: "invalidation descriptors in memory",
        run: invalidation_queue::run,
        seeds: invalidation_queue::seeds,
        memory: 4 << 20,
    },
    Target {
        name: "tables",
        about: "root, context, PASID and page tables in memory",
        run: tables::run,
        seeds: tables::seeds,
        memory: 2 << 20,
    },
    Target {
        name: "descriptors",
        about: "an accelerator's rings and descriptors, with the IOMMU behind it",
        run: descriptors::run,
        seeds: descriptors::seeds,
        memory: 4 << 20,
    },
    Target {
        name: "accelerator_bars",
        about: "an accelerator's registers, doorbells and MSI-X table",
        run: accelerator_bars::run,
        seeds: accelerator_bars::seeds,
        memory: 4 << 20,
    },
    Target {
        name: "mirror",
        about: "the mirror's control block and page tables in memory",
        run: mirror::run,
        seeds: mirror::seeds,
        memory: 2 << 20,
    },
];
