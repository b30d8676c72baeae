//! How much a run allocates: a global allocator that counts for each thread.
#![allow(unsafe_code, reason = "a global allocator is unsafe to implement")]
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting. A program that wants [`peak`] to count makes it its `#[global_allocator]`.
#[derive(Debug)]
pub struct Counting;

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

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

// SAFETY: every call is passed on to the system's allocator as it came; counting neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(signed(layout.size()));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(signed(layout.size()));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        add(-signed(layout.size()));
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// What `f` returns, and the most bytes that this thread had in use at one time beyond what there was before: 0 where
/// [`Counting`] is not the allocator. Memory that is mapped, as guest RAM is, does not count.
pub fn peak<T>(f: impl FnOnce() -> T) -> (T, i64) {
    let before = IN_USE.with(|cell| {
        let (now, _) = cell.get();
        cell.set((now, now));
        now
    });
    let result = f();
    (result, IN_USE.with(|cell| cell.get().1 - before))
}
