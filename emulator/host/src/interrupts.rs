//! MSI-X vectors of one function: which eventfd each has, whether the VMM has masked it, and whether it waits to be
//! sent.
//!
//! A vector that cannot be sent is pending (PCIe 6.0 §6.1.4.6): its pending bit shows it, and it is sent as soon as it
//! can be. It can be sent while bus mastering is on, the vector is not masked, and it has an eventfd.
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};
use svadev_mutation::mutant;
use svadev_vfio_user::{Action, Data, SetIrqs};

/// One vector, as `SET_IRQS` left it.
#[derive(Debug, Default)]
struct Vector {
    eventfd: Option<OwnedFd>,
    masked: bool,
    /// Raised, and not sent yet.
    pending: bool,
}

/// One vector as it is saved, without its eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VectorState {
    masked: bool,
    pending: bool,
}

/// The vectors and bus mastering, under one lock.
#[derive(Debug)]
struct Table {
    vectors: Vec<Vector>,
    /// Command register, Bus Master Enable: a vector is a memory write.
    bus_master: bool,
}

/// The vectors of a function. Written by the socket thread, raised by engine threads.
#[derive(Debug)]
pub(crate) struct Interrupts {
    /// Taken after the unit mutex and mailboxes. Nothing is taken under it, and nothing blocks under it.
    table: Mutex<Table>,
}

impl Interrupts {
    /// `count` vectors without an eventfd, and no bus mastering.
    pub(crate) fn new(count: u16) -> Self {
        let vectors = (0..count).map(|_| Vector::default()).collect();
        Self { table: Mutex::new(Table { vectors, bus_master: false }) }
    }

    /// Raises a vector.
    pub(crate) fn raise(&self, vector: u16) {
        let mut table = self.lock();
        let bus_master = table.bus_master;
        if let Some(vector) = table.vectors.get_mut(usize::from(vector)) {
            vector.pending = true;
            vector.send_pending(bus_master);
        }
    }

    /// Follows the command register. When bus mastering is turned on, sends what is pending.
    pub(crate) fn set_bus_master(&self, on: bool) {
        let mut table = self.lock();
        table.bus_master = on;
        if !mutant!(PendingVectorsNotRetried) {
            table.vectors.iter_mut().for_each(|vector| vector.send_pending(on));
        }
    }

    /// The pending bit of a vector.
    pub(crate) fn is_pending(&self, vector: u16) -> bool {
        self.lock().vectors.get(usize::from(vector)).is_some_and(|vector| vector.pending)
    }

    /// The mask and the pending bit of each vector.
    pub(crate) fn save(&self) -> Box<[VectorState]> {
        let state = |&Vector { eventfd: _, masked, pending }: &Vector| VectorState { masked, pending };
        self.lock().vectors.iter().map(state).collect()
    }

    /// Goes on with what was saved. The VMM gives each vector a new eventfd.
    pub(crate) fn restore(&self, state: &[VectorState]) {
        for (vector, &VectorState { masked, pending }) in self.lock().vectors.iter_mut().zip(state) {
            *vector = Vector { eventfd: None, masked, pending };
        }
    }

    /// Carries out one `SET_IRQS` for MSI-X. Refuses a descriptor that is no eventfd, and leaves the vectors as they
    /// were then.
    pub(crate) fn set(&self, set: SetIrqs<'_>) -> Result<(), Errno> {
        let mut table = self.lock();
        let Table { vectors, bus_master } = &mut *table;
        let all = vectors.len();
        let start = usize::try_from(set.start).map_err(|_| Errno::EINVAL)?;
        let count = usize::try_from(set.count).map_err(|_| Errno::EINVAL)?;
        let end = start.checked_add(count).filter(|end| *end <= all).ok_or(Errno::EINVAL)?;
        match (set.action, set.data) {
            // VFIO: no data, no vectors, trigger = take every eventfd away. What is pending stays so: a VMM that cannot
            // add a vector to others takes them all away and gives them again.
            (Action::Trigger, Data::None) if count == 0 => {
                for vector in vectors {
                    (vector.eventfd, vector.masked) = (None, false);
                }
            }
            (Action::Trigger, Data::EventFd(fds)) => {
                if !fds.iter().flatten().all(is_eventfd) {
                    return Err(Errno::EINVAL);
                }
                for (vector, fd) in vectors[start..end].iter_mut().zip(fds) {
                    vector.eventfd = fd;
                    vector.send_pending(*bus_master);
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
                        vector.apply(action, *bus_master);
                    }
                }
            }
        }
        Ok(())
    }

    /// Forgets every eventfd: the client is gone, or the function was reset.
    pub(crate) fn clear(&self) {
        self.lock().vectors.iter_mut().for_each(|vector| *vector = Vector::default());
    }

    /// Forgets what is pending: the function was reset.
    pub(crate) fn clear_pending(&self) {
        self.lock().vectors.iter_mut().for_each(|vector| vector.pending = false);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of the interrupt table panics")
    }
}

impl Vector {
    fn apply(&mut self, action: Action, bus_master: bool) {
        match action {
            Action::Mask => self.masked = true,
            Action::Unmask => {
                self.masked = false;
                if mutant!(PendingVectorLost) {
                    self.pending = false;
                }
            }
            Action::Trigger => self.pending = true,
        }
        self.send_pending(bus_master);
    }

    /// Sends the vector if it is pending and can be sent.
    fn send_pending(&mut self, bus_master: bool) {
        let masked = self.masked && !mutant!(MaskIgnored);
        let may_write = bus_master || mutant!(InterruptWithoutBusMaster);
        if let Some(fd) = &self.eventfd
            && self.pending
            && !masked
            && may_write
        {
            self.pending = false;
            signal(fd.as_fd());
        }
    }
}

/// Adds 1 to an eventfd without blocking, whether or not the VMM made it non-blocking: the flag belongs to both. If the
/// counter is full, the VMM has not taken an earlier interrupt, and the two merge, as MSIs may.
fn signal(eventfd: BorrowedFd<'_>) {
    let mut fds = [PollFd::new(eventfd, PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::ZERO) == Ok(1) && fds[0].any() == Some(true) {
        let _ = nix::unistd::write(eventfd, &1u64.to_ne_bytes());
    }
}

/// Whether a descriptor is an eventfd. Where /proc is not mounted, anything without a file type counts as one: a write
/// to the others of that kind fails.
fn is_eventfd(fd: &OwnedFd) -> bool {
    match std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
        Ok(target) => target == Path::new("anon_inode:[eventfd]"),
        Err(_) => fstat(fd).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == 0),
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

    /// Vectors of a function that may master the bus.
    fn vectors(count: u16) -> Interrupts {
        let interrupts = Interrupts::new(count);
        interrupts.set_bus_master(true);
        interrupts
    }

    #[test]
    fn raises_masks_and_forgets() {
        let interrupts = vectors(2);
        let (theirs, ours) = eventfd();
        set(&interrupts, Action::Trigger, 1, 1, Data::EventFd(vec![Some(theirs)])).unwrap();
        interrupts.raise(1);
        assert_eq!(ours.read(), Ok(1));
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
        interrupts.clear();
        assert!(!interrupts.is_pending(1));
    }

    #[test]
    fn what_is_pending_outlives_its_eventfd_and_a_restore() {
        let interrupts = Interrupts::new(1);
        set(&interrupts, Action::Mask, 0, 1, Data::None).unwrap();
        interrupts.raise(0);
        let restored = vectors(1);
        restored.restore(&interrupts.save());
        assert!(restored.is_pending(0));
        let (theirs, ours) = eventfd();
        set(&restored, Action::Trigger, 0, 1, Data::EventFd(vec![Some(theirs)])).unwrap();
        assert_eq!(ours.read(), Err(Errno::EAGAIN), "masked");
        set(&restored, Action::Unmask, 0, 1, Data::None).unwrap();
        assert_eq!(ours.read(), Ok(1));
    }

    #[test]
    fn a_vector_without_an_eventfd_is_pending_until_it_has_one() {
        let interrupts = vectors(1);
        interrupts.raise(0);
        assert!(interrupts.is_pending(0));
        let (theirs, ours) = eventfd();
        set(&interrupts, Action::Trigger, 0, 1, Data::EventFd(vec![Some(theirs)])).unwrap();
        assert_eq!(ours.read(), Ok(1));
        assert!(!interrupts.is_pending(0));

        // A VMM that adds a vector to others may disable all of them in between.
        set(&interrupts, Action::Trigger, 0, 0, Data::None).unwrap();
        interrupts.raise(0);
        let (theirs, ours) = eventfd();
        set(&interrupts, Action::Trigger, 0, 1, Data::EventFd(vec![Some(theirs)])).unwrap();
        assert_eq!(ours.read(), Ok(1));
    }

    #[test]
    fn a_vector_without_bus_mastering_is_pending_until_that_is_on() {
        let interrupts = Interrupts::new(2);
        let (theirs, ours) = eventfd();
        set(&interrupts, Action::Trigger, 0, 1, Data::EventFd(vec![Some(theirs)])).unwrap();
        interrupts.raise(0);
        interrupts.raise(1);
        assert_eq!(ours.read(), Err(Errno::EAGAIN));
        assert!(interrupts.is_pending(0));
        set(&interrupts, Action::Mask, 0, 1, Data::None).unwrap();
        interrupts.set_bus_master(true);
        assert_eq!(ours.read(), Err(Errno::EAGAIN), "masked as well");
        interrupts.set_bus_master(false);
        set(&interrupts, Action::Unmask, 0, 1, Data::None).unwrap();
        assert_eq!(ours.read(), Err(Errno::EAGAIN));
        interrupts.set_bus_master(true);
        assert_eq!(ours.read(), Ok(1));
        assert!(!interrupts.is_pending(0) && interrupts.is_pending(1));

        interrupts.clear_pending();
        let (theirs, ours) = eventfd();
        set(&interrupts, Action::Trigger, 1, 1, Data::EventFd(vec![Some(theirs)])).unwrap();
        assert_eq!(ours.read(), Err(Errno::EAGAIN), "a reset forgets what was pending");
    }

    #[test]
    fn a_descriptor_that_is_no_eventfd_is_refused() {
        let interrupts = vectors(2);
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
        let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty()).unwrap();
        for fd in [reader, writer, socket.into(), epoll.0] {
            let (theirs, ours) = eventfd();
            let fds = vec![Some(theirs), Some(fd)];
            assert_eq!(set(&interrupts, Action::Trigger, 0, 2, Data::EventFd(fds)), Err(Errno::EINVAL));
            interrupts.raise(0);
            assert_eq!(ours.read(), Err(Errno::EAGAIN), "none of the message is taken");
        }
    }

    #[test]
    fn an_eventfd_that_is_full_and_would_block_holds_nobody_up() {
        let interrupts = vectors(1);
        let ours = EventFd::from_flags(EfdFlags::empty()).unwrap();
        ours.write(u64::MAX - 1).unwrap();
        let theirs = ours.as_fd().try_clone_to_owned().unwrap();
        set(&interrupts, Action::Trigger, 0, 1, Data::EventFd(vec![Some(theirs)])).unwrap();
        interrupts.raise(0);
        assert_eq!(ours.read(), Ok(u64::MAX - 1));
        interrupts.raise(0);
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
