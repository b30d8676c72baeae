//! How much a test's thread allocates, to hold the server to its bounds.
#![allow(unsafe_code, reason = "a global allocator is unsafe to implement")]
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Bytes in use by this thread, which may free what others allocated, and the most there were.
    static IN_USE: Cell<(i64, i64)> = const { Cell::new((0, 0)) };
}

fn add(bytes: i64) {
    // A thread that is ending has no count any more, and nobody asks for it.
    let _ = IN_USE.try_with(|cell| {
        let (now, most) = cell.get();
        cell.set((now + bytes, most.max(now + bytes)));
    });
}

// SAFETY: every call is passed on to the system's allocator as it came; counting neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(i64::try_from(layout.size()).unwrap_or(i64::MAX));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        add(-i64::try_from(layout.size()).unwrap_or(i64::MAX));
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// What `f` returns, and the most bytes that it had in use at one time beyond what there was before.
pub(super) fn peak<T>(f: impl FnOnce() -> T) -> (T, i64) {
    let before = IN_USE.with(|cell| {
        let (now, _) = cell.get();
        cell.set((now, now));
        now
    });
    let result = f();
    (result, IN_USE.with(|cell| cell.get().1 - before))
}
