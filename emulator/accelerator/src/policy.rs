//! How an engine divides its time: costs and limits that its queues and its loop share.

/// What a slice may cost: bytes of operands, and what counts as some. An invalidation waits for at most one slice.
pub(crate) const SLICE_COST: i64 = 64 << 10;

/// What a descriptor costs besides its bytes. It is about what a copy moves in the time of a descriptor without
/// operands, so that shares of the cost are shares of the engine's time.
pub(crate) const DESCRIPTOR_COST: i64 = 512;

/// What a visit to a queue costs besides what is done there: state that was not in the cache.
pub(crate) const VISIT_COST: i64 = 128;

/// Watched queues that a pass looks at.
pub(crate) const LOOKS: usize = 16;

/// So many queues are watched however long they are idle.
pub(crate) const ALWAYS_WATCHED: usize = 16;

/// How long we poll an idle queue before its next doorbell must trap, ns. A trap costs some 80 µs. We start at 1 ms.
/// Each time a queue traps soon after we stopped polling it, we poll it longer, up to [`WATCH_NS_MOST`]. Otherwise
/// many such queues slow each other down until all of them trap.
pub(crate) const WATCH_NS: u64 = 1_000_000;

/// The longest time that an idle queue is polled, ns.
pub(crate) const WATCH_NS_MOST: u64 = 256_000_000;
