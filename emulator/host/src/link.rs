//! One function's way to the VMM: its vfio-user sender, its interrupts, and whether it may master the bus.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use svadev_fabric::{Delivery, Msi};
use svadev_vfio_user::Sender;

use crate::interrupts::Interrupts;

/// What any thread may use of a function's connection.
#[derive(Debug)]
pub(crate) struct Link {
    /// Replies and DMA messages.
    pub(crate) sender: Sender,
    /// MSI-X.
    pub(crate) interrupts: Interrupts,
    /// Command register, Bus Master Enable (PCI 3.0 §6.2.2): without it the function sends no memory write.
    bus_master: AtomicBool,
    held_interrupts: AtomicU64,
}

impl Link {
    /// A function with `vectors` MSI-X vectors, nothing enabled.
    pub(crate) fn new(sender: Sender, vectors: u16) -> Self {
        Self {
            sender,
            interrupts: Interrupts::new(vectors),
            bus_master: AtomicBool::new(false),
            held_interrupts: AtomicU64::new(0),
        }
    }

    /// Follows the command register, after the engines' gate: an interrupt of what a wider gate allows is sent, or held
    /// and sent here. Returns what bus mastering is now, if that is a change.
    pub(crate) fn set_bus_master(&self, on: bool) -> Option<bool> {
        let changed = self.bus_master.swap(on, Ordering::AcqRel) != on;
        if changed {
            self.interrupts.set_bus_master(on);
        }
        changed.then_some(on)
    }

    /// Whether the guest lets the function send memory writes.
    pub(crate) fn can_master(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
    }

    /// Sends one of the unit's interrupts as a memory write. The VMM handles it in its own thread; nobody waits for it.
    pub(crate) fn message_interrupt(&self, msi: Msi) -> Delivery {
        match self.sender.dma_write(msi.address, &msi.data.to_le_bytes()) {
            Ok(()) => Delivery::Sent,
            Err(error) => {
                // A guest whose VMM does not read, or is gone, gets no interrupts: the first one is worth a line.
                if self.held_interrupts.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(%error, ?msi, "cannot send the IOMMU's interrupt (logged once for each function)");
                }
                Delivery::Held
            }
        }
    }
}
