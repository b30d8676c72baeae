//! Where capabilities are in configuration space, found as software finds them.
use svadev_spec::pcie::header;

/// Most capabilities of a kind: configuration space has no room for more, so that a list that is longer is a circle.
const MOST: usize = 4096 / 4;

/// Offset of a capability (PCIe 6.0 §7.5.1.1.11). `read` reads two bytes of configuration space. `None` if the function
/// lacks it.
///
/// Errors: those of `read`.
pub fn capability<E>(id: u8, mut read: impl FnMut(u64) -> Result<[u8; 2], E>) -> Result<Option<u64>, E> {
    let mut at = read(header::CAPABILITIES_POINTER.into())?[0];
    for _ in 0..MOST {
        if at == 0 {
            break;
        }
        let [this, next] = read(at.into())?;
        if this == id {
            return Ok(Some(at.into()));
        }
        at = next;
    }
    Ok(None)
}

/// Offset of an extended capability (PCIe 6.0 §7.6.3). `read` reads four bytes of configuration space. `None` if the
/// function lacks it.
///
/// Errors: those of `read`.
pub fn extended_capability<E>(id: u16, mut read: impl FnMut(u64) -> Result<[u8; 4], E>) -> Result<Option<u64>, E> {
    let mut at = 0x100;
    for _ in 0..MOST {
        if at == 0 {
            break;
        }
        let head = u32::from_le_bytes(read(at)?);
        if head & 0xffff == u32::from(id) {
            return Ok(Some(at));
        }
        at = u64::from(head >> 20);
    }
    Ok(None)
}
