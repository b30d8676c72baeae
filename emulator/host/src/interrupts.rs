//! MSI-X vectors of one function: which eventfd each has, and whether the VMM has masked it.
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use nix::errno::Errno;
use svadev_mutation::mutant;
use svadev_vfio_user::{Action, Data, SetIrqs};

/// One vector, as `SET_IRQS` left it.
#[derive(Debug, Default)]
struct Vector {
    eventfd: Option<OwnedFd>,
    masked: bool,
    /// Raised while masked: delivered when it is unmasked (PCIe 6.0 §6.1.4.6, the pending bit).
    pending: bool,
}

/// One vector as it is saved, without its eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VectorState {
    masked: bool,
    pending: bool,
}

/// The vectors of a function. Written by the socket thread, raised by engine threads.
#[derive(Debug)]
pub(crate) struct Interrupts {
    /// Taken after the unit mutex and mailboxes; nothing is taken under it, and eventfd writes do not block.
    vectors: Mutex<Vec<Vector>>,
}

impl Interrupts {
    /// `count` vectors without an eventfd.
    pub(crate) fn new(count: u16) -> Self {
        Self { vectors: Mutex::new((0..count).map(|_| Vector::default()).collect()) }
    }

    /// Raises a vector. If it has no eventfd, the guest has not enabled it, and nothing happens.
    pub(crate) fn raise(&self, vector: u16) {
        let mut vectors = self.lock();
        if let Some(vector) = vectors.get_mut(usize::from(vector)) {
            vector.raise();
        }
    }

    /// The pending bit of a vector: it was raised while it was masked.
    pub(crate) fn is_pending(&self, vector: u16) -> bool {
        self.lock().get(usize::from(vector)).is_some_and(|vector| vector.pending)
    }

    /// What is masked and what is pending.
    pub(crate) fn save(&self) -> Box<[VectorState]> {
        self.lock().iter().map(|&Vector { eventfd: _, masked, pending }| VectorState { masked, pending }).collect()
    }

    /// Goes on with what was saved. The VMM gives each vector a new eventfd.
    pub(crate) fn restore(&self, state: &[VectorState]) {
        for (vector, &VectorState { masked, pending }) in self.lock().iter_mut().zip(state) {
            *vector = Vector { eventfd: None, masked, pending };
        }
    }

    /// Carries out one `SET_IRQS` for MSI-X.
    pub(crate) fn set(&self, set: SetIrqs<'_>) -> Result<(), Errno> {
        let mut vectors = self.lock();
        let all = vectors.len();
        let start = usize::try_from(set.start).map_err(|_| Errno::EINVAL)?;
        let count = usize::try_from(set.count).map_err(|_| Errno::EINVAL)?;
        let end = start.checked_add(count).filter(|end| *end <= all).ok_or(Errno::EINVAL)?;
        match (set.action, set.data) {
            // VFIO: no data, no vectors, trigger = take every eventfd away.
            (Action::Trigger, Data::None) if count == 0 => {
                vectors.iter_mut().for_each(|v| *v = Vector::default());
            }
            (Action::Trigger, Data::EventFd(fds)) => {
                // What is pending stays so: a VMM may take another way to the guest while a vector is masked.
                for (vector, fd) in vectors[start..end].iter_mut().zip(fds) {
                    vector.eventfd = fd;
                }
            }
            (action, data) => {
                for (index, vector) in vectors[start..end].iter_mut().enumerate() {
                    let selected = match &data {
                        Data::None => true,
                        Data::Bool(flags) => flags.get(index).is_some_and(|flag| *flag != 0),
                        // Mask and unmask by eventfd are for level interrupts, which the function has none of.
                        Data::EventFd(_) => return Err(Errno::EINVAL),
                    };
                    if selected {
                        vector.apply(action);
                    }
                }
            }
        }
        Ok(())
    }

    /// Forgets every eventfd: the client is gone, or the function was reset.
    pub(crate) fn clear(&self) {
        self.lock().iter_mut().for_each(|v| *v = Vector::default());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vector>> {
        self.vectors.lock().expect("no holder of the interrupt table panics")
    }
}

impl Vector {
    fn apply(&mut self, action: Action) {
        match action {
            Action::Mask => self.masked = true,
            Action::Unmask => {
                self.masked = false;
                if std::mem::take(&mut self.pending) && !mutant!(PendingVectorLost) {
                    self.raise();
                }
            }
            Action::Trigger => self.raise(),
        }
    }

    fn raise(&mut self) {
        if self.masked && !mutant!(MaskIgnored) {
            self.pending = true;
        } else if let Some(fd) = &self.eventfd {
            // EAGAIN means that the counter is full: the VMM has not taken an earlier interrupt. They merge, as MSIs may.
            let _ = nix::unistd::write(fd.as_fd(), &1u64.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    fn eventfd() -> (OwnedFd, EventFd) {
        let fd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        (fd.as_fd().try_clone_to_owned().unwrap(), fd)
    }

    fn set(interrupts: &Interrupts, action: Action, start: u32, count: u32, data: Data<'_>) -> Result<(), Errno> {
        interrupts.set(SetIrqs { index: 2, start, count, action, data })
    }

    #[test]
    fn raises_masks_and_forgets() {
        let interrupts = Interrupts::new(2);
        let (theirs, ours) = eventfd();
        interrupts.raise(0);
        set(&interrupts, Action::Trigger, 1, 1, Data::EventFd(vec![Some(theirs)])).unwrap();
        interrupts.raise(1);
        assert_eq!(ours.read(), Ok(1));
        interrupts.raise(0);
        interrupts.raise(9);
        assert_eq!(ours.read(), Err(Errno::EAGAIN));

        set(&interrupts, Action::Mask, 0, 2, Data::None).unwrap();
        interrupts.raise(1);
        assert_eq!(ours.read(), Err(Errno::EAGAIN), "masked");
        assert!(interrupts.is_pending(1) && !interrupts.is_pending(0) && !interrupts.is_pending(9));
        set(&interrupts, Action::Unmask, 0, 2, Data::Bool(&[0, 1])).unwrap();
        assert_eq!(ours.read(), Ok(1), "pending");
        assert!(!interrupts.is_pending(1));

        set(&interrupts, Action::Trigger, 1, 1, Data::None).unwrap();
        assert_eq!(ours.read(), Ok(1), "loopback");
        set(&interrupts, Action::Trigger, 0, 0, Data::None).unwrap();
        interrupts.raise(1);
        assert_eq!(ours.read(), Err(Errno::EAGAIN), "taken away");
    }

    #[test]
    fn what_is_pending_outlives_its_eventfd_and_a_restore() {
        let interrupts = Interrupts::new(1);
        set(&interrupts, Action::Mask, 0, 1, Data::None).unwrap();
        interrupts.raise(0);
        let restored = Interrupts::new(1);
        restored.restore(&interrupts.save());
        assert!(restored.is_pending(0));
        let (theirs, ours) = eventfd();
        set(&restored, Action::Trigger, 0, 1, Data::EventFd(vec![Some(theirs)])).unwrap();
        assert_eq!(ours.read(), Err(Errno::EAGAIN), "masked");
        set(&restored, Action::Unmask, 0, 1, Data::None).unwrap();
        assert_eq!(ours.read(), Ok(1));
    }

    #[test]
    fn refuses_what_is_out_of_range() {
        let interrupts = Interrupts::new(2);
        assert_eq!(set(&interrupts, Action::Trigger, 1, 2, Data::None), Err(Errno::EINVAL));
        assert_eq!(set(&interrupts, Action::Trigger, u32::MAX, 2, Data::None), Err(Errno::EINVAL));
        assert_eq!(set(&interrupts, Action::Mask, 0, 1, Data::EventFd(vec![None])), Err(Errno::EINVAL));
    }
}
