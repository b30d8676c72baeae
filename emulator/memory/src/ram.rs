//! One flat block of guest memory from address 0.
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{Bytes, GuestAddress, MmapRegion, VolatileMemory, VolatileMemoryError};

use crate::{GuestMemory, HostWindow, MemoryError};

/// Zeroed anonymous memory at guest-physical addresses `0..len`, for tests and the simulated world.
#[derive(Debug)]
pub struct Ram {
    region: MmapRegion,
}

impl Ram {
    /// `len` bytes, a multiple of the host's page size.
    pub fn new(len: usize) -> Result<Self, MmapRegionError> {
        Ok(Self { region: MmapRegion::new(len)? })
    }

    fn offset(&self, gpa: GuestAddress, len: usize) -> Result<usize, MemoryError> {
        let start = usize::try_from(gpa.0).map_err(|_| MemoryError::NotMapped(gpa.0))?;
        match start.checked_add(len) {
            Some(end) if end <= self.region.size() => Ok(start),
            _ => Err(MemoryError::NotMapped(gpa.0)),
        }
    }
}

fn atomic_error(gpa: GuestAddress) -> impl Fn(VolatileMemoryError) -> MemoryError {
    move |e| match e {
        VolatileMemoryError::Misaligned { .. } => MemoryError::Misaligned(gpa.0),
        _ => MemoryError::NotMapped(gpa.0),
    }
}

impl GuestMemory for Ram {
    type Kept = ();
    type View<'a> = &'a Self;

    fn view<'a>(&'a self, (): &'a mut ()) -> &'a Self {
        self
    }

    fn read(&self, gpa: GuestAddress, buf: &mut [u8]) -> Result<(), MemoryError> {
        let offset = self.offset(gpa, buf.len())?;
        self.region.as_volatile_slice().read_slice(buf, offset).map_err(|_| MemoryError::NotMapped(gpa.0))
    }

    fn write(&self, gpa: GuestAddress, buf: &[u8]) -> Result<(), MemoryError> {
        let offset = self.offset(gpa, buf.len())?;
        self.region.as_volatile_slice().write_slice(buf, offset).map_err(|_| MemoryError::NotMapped(gpa.0))
    }

    fn load_u64(&self, gpa: GuestAddress) -> Result<u64, MemoryError> {
        let offset = self.offset(gpa, 8)?;
        let word = self.region.get_atomic_ref::<std::sync::atomic::AtomicU64>(offset).map_err(atomic_error(gpa))?;
        Ok(u64::from_le(word.load(Ordering::Acquire)))
    }

    fn store_u32(&self, gpa: GuestAddress, value: u32) -> Result<(), MemoryError> {
        let offset = self.offset(gpa, 4)?;
        let word = self.region.get_atomic_ref::<std::sync::atomic::AtomicU32>(offset).map_err(atomic_error(gpa))?;
        word.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    fn store_u64(&self, gpa: GuestAddress, value: u64) -> Result<(), MemoryError> {
        let offset = self.offset(gpa, 8)?;
        let word = self.region.get_atomic_ref::<std::sync::atomic::AtomicU64>(offset).map_err(atomic_error(gpa))?;
        word.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    fn compare_exchange_u64(&self, gpa: GuestAddress, current: u64, new: u64) -> Result<Result<u64, u64>, MemoryError> {
        let offset = self.offset(gpa, 8)?;
        let word = self.region.get_atomic_ref::<std::sync::atomic::AtomicU64>(offset).map_err(atomic_error(gpa))?;
        Ok(word
            .compare_exchange(current.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Acquire)
            .map(u64::from_le)
            .map_err(u64::from_le))
    }

    fn window(&self, gpa: GuestAddress) -> Result<HostWindow, MemoryError> {
        self.offset(gpa, 1)?;
        let host = NonNull::new(self.region.as_ptr()).expect("mmap never returns a null pointer for a new region");
        Ok(HostWindow { host, gpa: GuestAddress(0), len: self.region.size() as u64, readable: true, writable: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_agree_and_stay_inside() {
        let ram = Ram::new(0x2000).unwrap();
        ram.write(GuestAddress(0xffe), &[1, 2, 3, 4]).unwrap();
        let mut word = [0; 4];
        ram.read(GuestAddress(0xffe), &mut word).unwrap();
        assert_eq!(word, [1, 2, 3, 4]);
        assert_eq!(ram.load_u64(GuestAddress(0x1000)).unwrap(), 0x0403);
        assert_eq!(ram.compare_exchange_u64(GuestAddress(0x1000), 0x0403, 7).unwrap(), Ok(0x0403));
        assert_eq!(ram.compare_exchange_u64(GuestAddress(0x1000), 0x0403, 8).unwrap(), Err(7));
        ram.store_u32(GuestAddress(0x1004), 1).unwrap();
        assert_eq!(ram.load_u64(GuestAddress(0x1000)).unwrap(), 1 << 32 | 7);
        ram.store_u64(GuestAddress(0x1008), 9).unwrap();
        assert_eq!(ram.load_u64(GuestAddress(0x1008)).unwrap(), 9);
        assert_eq!(ram.store_u64(GuestAddress(0x1ffc), 0), Err(MemoryError::NotMapped(0x1ffc)));
        assert_eq!(ram.load_u64(GuestAddress(0x1001)), Err(MemoryError::Misaligned(0x1001)));
        assert_eq!(ram.write(GuestAddress(0x1fff), &[0; 2]), Err(MemoryError::NotMapped(0x1fff)));
        assert_eq!(ram.load_u64(GuestAddress(u64::MAX - 7)), Err(MemoryError::NotMapped(u64::MAX - 7)));
    }
}
