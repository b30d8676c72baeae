//! A queue's registers, checked.
use svadev_fabric::Pasid;
use svadev_spec::device::{
    Completion, Descriptor, Priority, QueueModeration, QueuePasid, QueueService, QueueSize, QueueVector, RING_LOG2,
};

/// The registers of a queue as software wrote them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueRegisters {
    pub(crate) sq_base: u64,
    pub(crate) cq_base: u64,
    pub(crate) size: u32,
    pub(crate) pasid: u32,
    pub(crate) vector: u32,
    pub(crate) service: u32,
    pub(crate) moderation: u32,
}

/// What an enabled queue works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueConfig {
    pub(crate) sq_base: u64,
    pub(crate) cq_base: u64,
    /// Log2 of entries, in `RING_LOG2`.
    pub(crate) sq_log2: u32,
    pub(crate) cq_log2: u32,
    /// The process whose queue it is; `None` for a kernel queue.
    pub(crate) user: Option<Pasid>,
    /// MSI-X vector to raise.
    pub(crate) vector: Option<u16>,
    /// Its share of the engine, in relation to other queues'.
    pub(crate) weight: u8,
    /// Its interrupts.
    pub(crate) moderation: QueueModeration,
}

/// A ring at `base` with `1 << log2` entries of `entry` bytes lies within the address space, aligned.
fn ring_fits(base: u64, log2: u32, entry: usize) -> bool {
    base.is_multiple_of(64) && RING_LOG2.contains(&log2) && base.checked_add((entry as u64) << log2).is_some()
}

impl QueueRegisters {
    /// `None` is `queue_error::BAD_CONFIG`.
    pub(crate) fn check(&self, vectors: u8) -> Option<QueueConfig> {
        let (size, pasid, vector) =
            (QueueSize::from_bits(self.size), QueuePasid::from_bits(self.pasid), QueueVector::from_bits(self.vector));
        // What the registers would be without the bits that are reserved.
        let clean_size = QueueSize::new().with_sq_log2(size.sq_log2()).with_cq_log2(size.cq_log2());
        let clean_pasid = QueuePasid::new().with_pasid(pasid.pasid()).with_user(pasid.user());
        let clean_vector = QueueVector::new().with_vector(vector.vector()).with_enable(vector.enable());
        let service = QueueService::from_bits(self.service);
        let clean = self.size == clean_size.into_bits()
            && self.pasid == clean_pasid.into_bits()
            && self.vector == clean_vector.into_bits()
            && self.service == QueueService::new().with_priority(service.priority()).into_bits();
        let (sq_log2, cq_log2) = (u32::from(size.sq_log2()), u32::from(size.cq_log2()));
        let priority = Priority::from_raw(service.priority())?;
        let good = clean
            && ring_fits(self.sq_base, sq_log2, size_of::<Descriptor>())
            && ring_fits(self.cq_base, cq_log2, size_of::<Completion>())
            && (pasid.user() || pasid.pasid() == 0)
            && (vector.vector() < vectors || (!vector.enable() && vector.vector() == 0));
        good.then(|| QueueConfig {
            sq_base: self.sq_base,
            cq_base: self.cq_base,
            sq_log2,
            cq_log2,
            user: pasid.user().then(|| Pasid::from_low_bits(pasid.pasid().into())),
            vector: vector.enable().then(|| vector.vector().into()),
            weight: priority.weight(),
            moderation: QueueModeration::from_bits(self.moderation),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: QueueRegisters = QueueRegisters {
        sq_base: 0x1000,
        cq_base: 0x2000,
        size: 0x0406,
        pasid: 0,
        vector: 0,
        service: 0,
        moderation: 0,
    };

    #[test]
    fn registers_become_a_configuration() {
        let user = QueueRegisters { pasid: 1 << 31 | 0x12345, vector: 1 << 31 | 3, ..GOOD };
        let config = user.check(4).unwrap();
        assert_eq!((config.sq_log2, config.cq_log2, config.vector), (6, 4, Some(3)));
        assert_eq!(config.user, Some(Pasid::new(0x12345).unwrap()));
        assert_eq!(GOOD.check(0).unwrap().user, None);
        let weights = [0, 1, 2, 3].map(|service| QueueRegisters { service, ..GOOD }.check(4).unwrap().weight);
        assert_eq!(weights, [2, 1, 4, 8]);
    }

    #[test]
    fn every_value_out_of_range_is_refused() {
        for bad in [
            QueueRegisters { sq_base: 0x1020, ..GOOD },
            QueueRegisters { cq_base: 0x2001, ..GOOD },
            QueueRegisters { sq_base: !63, ..GOOD },
            QueueRegisters { size: 0x0400, ..GOOD },
            QueueRegisters { size: 0x0004, ..GOOD },
            QueueRegisters { size: 0x0410, ..GOOD },
            QueueRegisters { size: 0x1_0404, ..GOOD },
            QueueRegisters { pasid: 1, ..GOOD },
            QueueRegisters { pasid: 1 << 31 | 1 << 20, ..GOOD },
            QueueRegisters { vector: 1 << 31 | 4, ..GOOD },
            QueueRegisters { vector: 1 << 8, ..GOOD },
            QueueRegisters { service: 4, ..GOOD },
            QueueRegisters { service: 1 << 8, ..GOOD },
        ] {
            assert_eq!(bad.check(4), None, "{bad:x?}");
        }
    }
}
