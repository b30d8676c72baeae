//! The platform of a fuzzed machine: plain memory, one engine that the target runs, and assertions on messages.
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use svadev_accelerator::DoorbellPages;
use svadev_fabric::{AtsError, Bdf, InvalidateTag, Translation, TranslationRequest};
use svadev_host::{Doorbells, GuestMaps, Platform, Tap, Wake};
use svadev_memory::Ram;
use svadev_vfio_user::{DmaMap, DmaUnmap};

use super::tables::DEVICE;

/// The platform of a fuzzed machine.
pub(crate) struct Fuzzed(pub(crate) Arc<Ram>);

impl Platform for Fuzzed {
    type Memory = Ram;
    type Maps = Maps;
    type Waker = Target;
    type Tap = Asserts;

    fn memory(&mut self, _: Bdf) -> (Arc<Ram>, Maps) {
        (Arc::clone(&self.0), Maps::default())
    }

    fn waker(&mut self, _: Bdf, engine: usize) -> anyhow::Result<Arc<Target>> {
        assert_eq!(engine, 0, "there is one engine");
        Ok(Arc::new(Target))
    }

    fn doorbells(&mut self, queues: u16) -> anyhow::Result<Doorbells> {
        Ok(Doorbells { pages: DoorbellPages::anonymous(queues.into()), file: None })
    }
}

/// The target runs the engine when its input says so.
pub(crate) struct Target;

impl Wake for Target {
    fn wake(&self) {}
}

/// Sizes of what is mapped, bytes, by nobody's address: the server checks that an unmap is of a map.
#[derive(Debug, Default)]
pub(crate) struct Maps(Mutex<u64>);

impl GuestMaps for Maps {
    type Retired = u64;

    fn map(&self, map: DmaMap) -> Result<(), Errno> {
        *self.0.lock().expect("nothing panics with it") += map.size;
        Ok(())
    }

    fn unmap(&self, range: DmaUnmap) -> Result<u64, Errno> {
        match range {
            DmaUnmap::All => Ok(self.unmap_all()),
            DmaUnmap::Range { size, .. } => {
                *self.0.lock().expect("nothing panics with it") -= size;
                Ok(size)
            }
        }
    }

    fn unmap_all(&self) -> u64 {
        std::mem::take(&mut *self.0.lock().expect("nothing panics with it"))
    }

    fn bytes(retired: &u64) -> u64 {
        *retired
    }
}

/// Assertions that hold for every message.
pub(crate) struct Asserts;

impl Tap<Ram> for Asserts {
    fn translate(
        &self,
        request: TranslationRequest,
        next: impl FnOnce(TranslationRequest) -> Result<Translation, AtsError>,
    ) -> Result<Translation, AtsError> {
        assert_eq!(request.requester, DEVICE, "a function asks as itself");
        next(request)
    }

    fn invalidate_complete(&self, requester: Bdf, tag: InvalidateTag, next: impl Fn(Bdf, InvalidateTag)) {
        assert_eq!(requester, DEVICE, "a function completes its own");
        next(requester, tag);
    }
}
