//! The bytes of a client's messages.
use svadev_spec::vfio_user::{
    DmaMap, DmaMapFlags, DmaUnmap, Header, IrqSet, IrqSetFlags, RegionAccess, VERSION_MAJOR, VERSION_MINOR, Version,
};
use zerocopy::IntoBytes as _;

/// A whole message: a header with these flags, and a payload.
pub fn message(message_id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header { message_id, command, message_size: message_size(payload), flags, error: 0 };
    [header.as_bytes(), payload].concat()
}

/// The size of a message with this payload, bytes.
pub(super) fn message_size(payload: &[u8]) -> u32 {
    u32::try_from(size_of::<Header>() + payload.len()).expect("a client's message is short")
}

/// The payload of VERSION with our version. `json` has no NUL.
pub fn version(json: &str) -> Vec<u8> {
    let version = Version { major: VERSION_MAJOR, minor: VERSION_MINOR };
    [version.as_bytes(), json.as_bytes(), &[0]].concat()
}

/// The payload of REGION_READ.
pub const fn region_read(region: u32, offset: u64, count: u32) -> RegionAccess {
    RegionAccess { offset, region, count }
}

/// The payload of REGION_WRITE.
pub fn region_write(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let count = u32::try_from(data.len()).expect("a client's message is short");
    [RegionAccess { offset, region, count }.as_bytes(), data].concat()
}

/// The payload of DMA_MAP for memory that may be read and written. `offset` is where it begins in its file.
pub fn dma_map(address: u64, size: u64, offset: u64) -> DmaMap {
    let flags = (DmaMapFlags::READ | DmaMapFlags::WRITE).bits();
    DmaMap { argsz: argsz::<DmaMap>(), flags, offset, address, size }
}

/// The payload of DMA_UNMAP for one mapping.
pub fn dma_unmap(address: u64, size: u64) -> DmaUnmap {
    DmaUnmap { argsz: argsz::<DmaUnmap>(), flags: 0, address, size }
}

/// The payload of DEVICE_SET_IRQS for interrupts `start..start + count` of a type, without data but for descriptors.
pub fn irq_set(index: u32, flags: IrqSetFlags, start: u32, count: u32) -> IrqSet {
    IrqSet { argsz: argsz::<IrqSet>(), flags: flags.bits(), index, start, count }
}

/// The size of a payload whose first field is `argsz`.
fn argsz<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("a payload is small")
}
