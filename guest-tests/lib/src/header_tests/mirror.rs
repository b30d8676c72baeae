//! Mirror mode: `svadev_mirror_hw.h` and `svadev_spec::mirror` say the same.
use svadev_spec::mirror::{
    self, Control, SpaceEntry, Status, TableEntry, Vector, access, engine, error, regs, response,
};

use super::*;

#[test]
fn mirror_structures_have_one_layout() {
    let mut structs = Header::read("svadev_mirror_hw.h").structs;
    // The reserved words of the header are an array in Rust.
    let header = structs.get_mut("svadev_mirror_header").expect("it has a header");
    let reserved = header.fields.split_off(header.fields.len() - 6);
    assert!(reserved.iter().all(|(name, _, size)| name.starts_with("reserved") && *size == 8));
    assert_eq!(reserved[0].1, offset_of!(mirror::Header, reserved));
    let expected = BTreeMap::from(
        [
            (
                "svadev_mirror_header",
                rust_layout!(
                    mirror::Header,
                    magic,
                    version,
                    spaces_log2,
                    invalidations_log2,
                    events_log2,
                    responses_log2,
                    engines
                ),
            ),
            ("svadev_mirror_invalidation", rust_layout!(mirror::Invalidation, asid, flags, first, last, reserved)),
            (
                "svadev_mirror_event",
                rust_layout!(
                    mirror::Event,
                    token,
                    address,
                    length,
                    cookie,
                    asid,
                    queue,
                    access,
                    flags,
                    generation,
                    reserved0,
                    reserved1,
                    seq
                ),
            ),
            ("svadev_mirror_response", rust_layout!(mirror::Response, token, code, reserved)),
        ]
        .map(|(name, layout)| (name.to_owned(), layout)),
    );
    assert_eq!(structs, expected);
}

#[test]
fn mirror_constants_are_the_same() {
    let bits = |entry: TableEntry| u64::from(entry);
    let shift = |bits: u64| u64::from(bits.trailing_zeros());
    let space = SpaceEntry::new();
    let entry = TableEntry::new();
    Header::read("svadev_mirror_hw.h").assert_constants(&[
        ("SVADEV_MIRROR_ASID_BIT", mirror::ASID_BIT.into()),
        ("SVADEV_MIRROR_LINE", mirror::LINE),
        ("SVADEV_REG_MIRROR_BASE", regs::BASE),
        ("SVADEV_REG_MIRROR_CONTROL", regs::CONTROL),
        ("SVADEV_REG_MIRROR_STATUS", regs::STATUS),
        ("SVADEV_REG_MIRROR_VECTOR", regs::VECTOR),
        ("SVADEV_REG_MIRROR_ERROR_ASID", regs::ERROR_ASID),
        ("SVADEV_REG_MIRROR_ERROR_ADDRESS", regs::ERROR_ADDRESS),
        ("SVADEV_REG_MIRROR_KICK", regs::KICK),
        ("SVADEV_REG_DEVMEM_ID", regs::DEVMEM_ID),
        ("SVADEV_REG_DEVMEM_SIZE", regs::DEVMEM_SIZE),
        ("SVADEV_MIRROR_CONTROL_ENABLE", u32::from(Control::new().with_enable(true)).into()),
        ("SVADEV_MIRROR_STATUS_ENABLED", u32::from(Status::new().with_enabled(true)).into()),
        ("SVADEV_MIRROR_STATUS_BUSY", u32::from(Status::new().with_busy(true)).into()),
        ("SVADEV_MIRROR_STATUS_ERROR", u32::from(Status::new().with_error(u8::MAX)).into()),
        ("SVADEV_MIRROR_ERROR_NONE", error::NONE.into()),
        ("SVADEV_MIRROR_ERROR_BAD_HEADER", error::BAD_HEADER.into()),
        ("SVADEV_MIRROR_ERROR_BLOCK_LOST", error::BLOCK_LOST.into()),
        ("SVADEV_MIRROR_ERROR_BAD_SPACE", error::BAD_SPACE.into()),
        ("SVADEV_MIRROR_ERROR_BAD_ENTRY", error::BAD_ENTRY.into()),
        ("SVADEV_MIRROR_ERROR_BAD_TABLE", error::BAD_TABLE.into()),
        ("SVADEV_MIRROR_ERROR_BAD_FRAME", error::BAD_FRAME.into()),
        ("SVADEV_MIRROR_ERROR_BAD_EVENT_HEAD", error::BAD_EVENT_HEAD.into()),
        ("SVADEV_MIRROR_ERROR_BAD_RESPONSE_TAIL", error::BAD_RESPONSE_TAIL.into()),
        ("SVADEV_MIRROR_ERROR_BAD_INVALIDATION", error::BAD_INVALIDATION.into()),
        ("SVADEV_MIRROR_VECTOR_VECTOR", u32::from(Vector::new().with_vector(u8::MAX)).into()),
        ("SVADEV_MIRROR_VECTOR_ENABLE", u32::from(Vector::new().with_enable(true)).into()),
        ("SVADEV_MIRROR_MAGIC", mirror::MAGIC.into()),
        ("SVADEV_MIRROR_VERSION", mirror::VERSION.into()),
        ("SVADEV_MIRROR_SPACES_LOG2_MIN", (*mirror::SPACES_LOG2.start()).into()),
        ("SVADEV_MIRROR_SPACES_LOG2_MAX", (*mirror::SPACES_LOG2.end()).into()),
        ("SVADEV_MIRROR_INVALIDATIONS_LOG2_MIN", (*mirror::INVALIDATIONS_LOG2.start()).into()),
        ("SVADEV_MIRROR_INVALIDATIONS_LOG2_MAX", (*mirror::INVALIDATIONS_LOG2.end()).into()),
        ("SVADEV_MIRROR_EVENTS_LOG2_MIN", (*mirror::EVENTS_LOG2.start()).into()),
        ("SVADEV_MIRROR_EVENTS_LOG2_MAX", (*mirror::EVENTS_LOG2.end()).into()),
        ("SVADEV_MIRROR_RESPONSES_LOG2_MIN", (*mirror::RESPONSES_LOG2.start()).into()),
        ("SVADEV_MIRROR_RESPONSES_LOG2_MAX", (*mirror::RESPONSES_LOG2.end()).into()),
        ("SVADEV_MIRROR_INVALIDATION_TAIL", mirror::INVALIDATION_TAIL),
        ("SVADEV_MIRROR_WAITERS", mirror::WAITERS),
        ("SVADEV_MIRROR_SPACES", mirror::SPACES),
        ("SVADEV_MIRROR_ENGINE_ONLINE", engine::ONLINE),
        ("SVADEV_MIRROR_ENGINE_INVALIDATION_HEAD", engine::INVALIDATION_HEAD),
        ("SVADEV_MIRROR_ENGINE_EVENT_TAIL", engine::EVENT_TAIL),
        ("SVADEV_MIRROR_ENGINE_RESPONSE_HEAD", engine::RESPONSE_HEAD),
        ("SVADEV_MIRROR_ENGINE_EVENT_HEAD", engine::EVENT_HEAD),
        ("SVADEV_MIRROR_ENGINE_RESPONSE_TAIL", engine::RESPONSE_TAIL),
        ("SVADEV_MIRROR_ENGINE_EVENTS", engine::EVENTS),
        ("SVADEV_MIRROR_SPACE_VALID", u64::from(space.with_valid(true))),
        ("SVADEV_MIRROR_SPACE_FIVE_LEVELS", u64::from(space.with_five_levels(true))),
        ("SVADEV_MIRROR_SPACE_GENERATION_SHIFT", shift(u64::from(space.with_generation(1)))),
        ("SVADEV_MIRROR_INVALIDATE_ALL", mirror::INVALIDATE_ALL.into()),
        ("SVADEV_MIRROR_INVALIDATE_TABLES", mirror::INVALIDATE_TABLES.into()),
        ("SVADEV_MIRROR_EVENT_RING", mirror::EVENT_RING.into()),
        ("SVADEV_MIRROR_EVENT_AGAIN", mirror::EVENT_AGAIN.into()),
        ("SVADEV_MIRROR_ACCESS_READ", access::READ.into()),
        ("SVADEV_MIRROR_ACCESS_WRITE", access::WRITE.into()),
        ("SVADEV_MIRROR_ACCESS_EXCLUSIVE", access::EXCLUSIVE.into()),
        ("SVADEV_MIRROR_RESPONSE_SUCCESS", response::SUCCESS.into()),
        ("SVADEV_MIRROR_RESPONSE_INVALID", response::INVALID.into()),
        ("SVADEV_MIRROR_RESPONSE_FAILURE", response::FAILURE.into()),
        ("SVADEV_MIRROR_RESPONSE_AGAIN", response::AGAIN.into()),
        ("SVADEV_MIRROR_PTE_PRESENT", bits(entry.with_present(true))),
        ("SVADEV_MIRROR_PTE_WRITABLE", bits(entry.with_writable(true))),
        ("SVADEV_MIRROR_PTE_LARGE", bits(entry.with_large(true))),
        ("SVADEV_MIRROR_PTE_DEVICE_SHIFT", shift(bits(entry.with_device(true)))),
        ("SVADEV_MIRROR_PTE_EXCLUSIVE_SHIFT", shift(bits(entry.with_exclusive(true)))),
        ("SVADEV_MIRROR_DEVICE_NUMBER_SHIFT", mirror::DEVICE_NUMBER_SHIFT.into()),
    ]);
    assert_eq!((space.with_root(1), entry.with_frame(1)), (SpaceEntry::from(1 << 12), TableEntry::from(1 << 12)));
}
