//! Doorbell pages: memory that guest and device share, one page a queue. Every access is one atomic load or store.
#![allow(unsafe_code, reason = "atomic words in memory that a guest maps too")]
use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use svadev_spec::device::DOORBELL_STRIDE;
use svadev_spec::doorbell;

/// The doorbell pages of one function.
pub struct DoorbellPages {
    host: NonNull<u8>,
    pages: usize,
    /// Whoever keeps the memory mapped.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the memory is only accessed through atomics, from any thread, and lives as long as `_owner`.
unsafe impl Send for DoorbellPages {}
// SAFETY: as above.
unsafe impl Sync for DoorbellPages {}

impl fmt::Debug for DoorbellPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DoorbellPages").field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl DoorbellPages {
    /// `pages` pages of [`DOORBELL_STRIDE`] bytes at `host`, which `owner` keeps mapped.
    ///
    /// # Safety
    /// `host` is aligned to 4 bytes, and the pages are readable and writable for as long as `owner` lives. This process
    /// accesses them through atomics only.
    pub unsafe fn new(host: NonNull<u8>, pages: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        assert!(host.cast::<u32>().is_aligned(), "doorbell words must be aligned");
        Self { host, pages, _owner: owner }
    }

    /// Pages of this process's own, zeroed; for tests, and for queues that no guest maps.
    pub fn anonymous(pages: usize) -> Self {
        let words = pages * usize::try_from(DOORBELL_STRIDE / 4).expect("a small constant");
        let memory: Arc<[AtomicU32]> = (0..words).map(|_| AtomicU32::new(0)).collect();
        let host = NonNull::from(&*memory).cast();
        // SAFETY: a slice of atomics is aligned, may be written through a shared reference, and the Arc keeps it.
        unsafe { Self::new(host, pages, Arc::new(memory)) }
    }

    /// How many.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The word at `offset` of `page`. Panics outside the pages: both are the device's own choice.
    fn word(&self, page: usize, offset: u64) -> &AtomicU32 {
        assert!(page < self.pages && offset < DOORBELL_STRIDE && offset.is_multiple_of(4), "no such doorbell word");
        let at = page * usize::try_from(DOORBELL_STRIDE).expect("a small constant")
            + usize::try_from(offset).expect("below the stride");
        // SAFETY: inside the pages (checked above), which are mapped as long as `self` (`new`); aligned, since the base
        // is and `at` is a multiple of 4; only atomics are used on it.
        unsafe { AtomicU32::from_ptr(self.host.as_ptr().add(at).cast()) }
    }

    /// Loads a word, acquire: what its writer wrote before is seen.
    pub fn load(&self, page: usize, offset: u64) -> u32 {
        doorbell::observe(self.word(page, offset))
    }

    /// Stores a word, release: a reader of it sees what was written before.
    pub fn store(&self, page: usize, offset: u64, value: u32) {
        doorbell::publish(self.word(page, offset), value);
    }

    /// Zeroes a page.
    pub fn clear(&self, page: usize) {
        for offset in (0..DOORBELL_STRIDE).step_by(4) {
            self.store(page, offset, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use svadev_spec::device::doorbell;

    use super::*;

    #[test]
    fn words_are_apart_and_clear_at_once() {
        let pages = DoorbellPages::anonymous(2);
        pages.store(1, doorbell::SQ_TAIL, 7);
        pages.store(1, doorbell::ARMED, 1);
        assert_eq!((pages.load(0, doorbell::SQ_TAIL), pages.load(1, doorbell::SQ_TAIL)), (0, 7));
        pages.clear(1);
        assert_eq!(pages.load(1, doorbell::ARMED), 0);
    }

    #[test]
    #[should_panic(expected = "no such doorbell word")]
    fn a_page_beyond_the_end_is_our_own_mistake() {
        DoorbellPages::anonymous(1).load(1, 0);
    }
}
