//! The hot path allocates nothing: descriptors go through a warm engine, and the allocator counts.
//!
//! No lock either: `Engine::run` reaches a mutex in two places only, the mailbox (when its flag says that somebody posted) and the
//! page request table (on a fault). A run without either is what is counted here.
#![allow(unsafe_code, reason = "an allocator that counts")]
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use svadev_spec::device::{Descriptor, DescriptorFlags, opcode};

mod rig;
use rig::{BUFFERS, Rig, copy};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is passed on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // While a thread ends there is no counter any more, and nothing that is counted.
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// One of each kind of work that has operands, small and large, plain and fenced.
fn work(n: u32) -> Descriptor {
    let (src, dst) = (BUFFERS + u64::from(n % 32) * 0x4_0000, BUFFERS + (64 << 20));
    let length = [1, 64, 4096, 9000, 70_000][(n / 6) as usize % 5];
    let flags = if n.is_multiple_of(7) { DescriptorFlags::FENCE } else { DescriptorFlags::INTERRUPT }.bits();
    match n % 6 {
        0 => Descriptor { opcode: opcode::NOP, flags, ..Descriptor::default() },
        1 => Descriptor { opcode: opcode::FILL, flags, dst, length, operand: 7, ..Descriptor::default() },
        2 => Descriptor { opcode: opcode::CRC32C, flags, src, length, ..Descriptor::default() },
        3 => Descriptor { opcode: opcode::COMPARE, flags, src, dst: src, length, ..Descriptor::default() },
        4 => Descriptor { opcode: opcode::DRAIN, ..Descriptor::default() },
        _ => Descriptor { flags, ..copy(src, dst, length) },
    }
}

#[test]
fn the_hot_path_allocates_nothing() {
    let before = allocations();
    drop(Box::new(1));
    assert_eq!(allocations(), before + 1, "the counter counts");
    let mut rig = Rig::new(8, 12);
    // Warm: every translation is in the device TLB, and what is lazy has happened.
    for _ in 0..3 {
        (0..8).for_each(|queue| rig.batch(queue, 120, work));
    }
    let before = allocations();
    for _ in 0..50 {
        for queue in 0..8 {
            rig.batch(queue, 120, work);
        }
        for _ in 0..100 {
            rig.run();
        }
    }
    assert_eq!(allocations(), before, "48000 descriptors through a warm engine");
}
