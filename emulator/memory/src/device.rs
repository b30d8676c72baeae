//! The memory that a device's functions have on board: one file for each, which a VMM may map into the guest as a BAR.
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use svadev_spec::mirror::{DEVICE_NUMBER_SHIFT, device_address};
use vm_memory::GuestAddress;

use crate::{GuestMemory, HostWindow, MapError, Mappings, MemoryMap, Region};

/// A BAR that is nowhere.
const NOWHERE: u64 = u64::MAX;

/// One function's memory.
#[derive(Debug)]
struct Part {
    size: u64,
    /// Where its BAR is decoded.
    bar: AtomicU64,
}

/// All memory of one device. Each function's is named by the function's number in the device.
#[derive(Debug)]
pub struct DeviceMemory {
    /// By device address.
    map: MemoryMap,
    parts: Box<[Part]>,
}

impl DeviceMemory {
    /// Memory from files, by number: the file and its bytes, or nothing.
    pub fn new(parts: impl IntoIterator<Item = Option<(OwnedFd, u64)>>) -> Result<Self, MapError> {
        let map = MemoryMap::new(Mappings::new());
        let mut sizes = Vec::new();
        for (number, part) in (0u8..).zip(parts) {
            let size = part.as_ref().map_or(0, |(_, size)| *size);
            if let Some((file, size)) = part {
                let gpa = GuestAddress(device_address(number, 0));
                map.map(Region { gpa, size, offset: 0, read: true, write: true, fd: Some(file) })?;
            }
            sizes.push(Part { size, bar: AtomicU64::new(NOWHERE) });
        }
        Ok(Self { map, parts: sizes.into() })
    }

    /// Bytes of a function's memory, 0 if it has none.
    pub fn size(&self, number: u8) -> u64 {
        self.parts.get(usize::from(number)).map_or(0, |part| part.size)
    }

    /// Says where a function's BAR is decoded.
    pub fn set_bar(&self, number: u8, address: Option<u64>) {
        if let Some(part) = self.parts.get(usize::from(number)) {
            part.bar.store(address.unwrap_or(NOWHERE), Ordering::Release);
        }
    }

    /// The memory around a device address.
    pub fn window(&self, address: u64) -> Option<HostWindow> {
        self.map.window(GuestAddress(address)).ok()
    }

    /// The memory around a guest-physical address that lies in one of the BARs, with guest-physical addresses.
    ///
    /// A VMM tells every function of the BARs as regions without a file. They are this process's own memory.
    pub fn window_at_bar(&self, gpa: u64) -> Option<HostWindow> {
        let inside = |part: &Part| {
            let bar = part.bar.load(Ordering::Acquire);
            let offset = gpa.checked_sub(bar)?;
            (bar != NOWHERE && offset < part.size).then_some((bar, offset))
        };
        let (number, (bar, offset)) = (0u64..).zip(&self.parts).find_map(|(n, part)| Some((n, inside(part)?)))?;
        let window = self.window(number << DEVICE_NUMBER_SHIFT | offset)?;
        let first = window.gpa.0 - (number << DEVICE_NUMBER_SHIFT);
        Some(HostWindow { gpa: GuestAddress(bar.checked_add(first)?), ..window })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn file(bytes: u64) -> OwnedFd {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        file.into()
    }

    #[test]
    fn memory_is_found_by_device_address_and_by_where_its_bar_is() {
        let memory = DeviceMemory::new([Some((file(0x4000), 0x4000)), None, Some((file(0x2000), 0x2000))]).unwrap();
        assert_eq!([0, 1, 2, 3].map(|number| memory.size(number)), [0x4000, 0, 0x2000, 0]);
        let window = memory.window(device_address(2, 0x1fff)).unwrap();
        assert_eq!((window.gpa.0, window.len, window.writable), (device_address(2, 0), 0x2000, true));
        for beyond in [device_address(0, 0x4000), device_address(1, 0), device_address(3, 0), u64::MAX] {
            assert!(memory.window(beyond).is_none(), "{beyond:x}");
        }
        assert!(memory.window_at_bar(0).is_none(), "no BAR is anywhere");
        memory.set_bar(2, Some(0xc0_0000_0000));
        memory.set_bar(9, Some(0));
        let at = memory.window_at_bar(0xc0_0000_1000).unwrap();
        assert_eq!((at.gpa.0, at.len, at.host), (0xc0_0000_0000, 0x2000, window.host));
        assert!(memory.window_at_bar(0xc0_0000_2000).is_none() && memory.window_at_bar(0xbf_ffff_ffff).is_none());
        memory.set_bar(2, None);
        assert!(memory.window_at_bar(0xc0_0000_1000).is_none());
    }
}
