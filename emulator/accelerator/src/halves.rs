//! The halves of 64-bit registers, which software may access one by one.

/// The half of a 64-bit register that an offset means.
pub(crate) fn half(value: u64, offset: u64) -> u32 {
    let value = if offset & 4 == 0 { value } else { value >> 32 };
    u32::try_from(value & u64::from(u32::MAX)).expect("masked to 32 bits")
}

/// Replaces the half that an offset means.
pub(crate) fn set_half(register: &mut u64, offset: u64, value: u32) {
    let shift = if offset & 4 == 0 { 0 } else { 32 };
    *register = *register & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
}
