//! The hot path makes no system call: a warm engine, and the driver's half beside it, run under seccomp's strict mode, where any but
//! read, write and exit is death.
#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(unsafe_code, reason = "fork, seccomp, and the system calls around them")]
use std::io::{Error, Read};
use std::os::fd::{AsRawFd, FromRawFd};

use svadev_spec::device::{Descriptor, DescriptorFlags, opcode};

mod rig;
use rig::{BUFFERS, Rig, copy};

const QUEUES: u16 = 8;
const DEPTH: u32 = 120;
/// What the child writes when all is done.
const DONE: u8 = 0x5d;

/// Small copies and large ones, with and without what makes them wait for each other, and what is no copy.
fn work(n: u32) -> Descriptor {
    let (src, dst) = (BUFFERS + u64::from(n % 32) * 0x4_0000, BUFFERS + (64 << 20));
    let length = [1, 64, 4096, 9000, 70_000][(n / 4) as usize % 5];
    let flags = if n.is_multiple_of(7) { DescriptorFlags::FENCE } else { DescriptorFlags::INTERRUPT }.bits();
    match n % 4 {
        0 => Descriptor { opcode: opcode::FILL, flags, dst, length, operand: 7, ..Descriptor::default() },
        1 => Descriptor { opcode: opcode::CRC32C, flags, src, length, ..Descriptor::default() },
        _ => Descriptor { flags, ..copy(src, dst, length) },
    }
}

fn all_queues(rig: &mut Rig) {
    for queue in 0..usize::from(QUEUES) {
        rig.batch(queue, DEPTH, work);
        for _ in 0..100 {
            rig.run();
        }
    }
}

/// Ends the thread without the library's help: `exit_group`, which that would call, is forbidden, too.
fn end(status: libc::c_long) -> ! {
    loop {
        // SAFETY: takes a number and does not return.
        unsafe { libc::syscall(libc::SYS_exit, status) };
    }
}

/// Runs `work` in a child under strict seccomp. Its status as of `wait`, and whether it came to its end.
fn strictly(work: impl FnOnce()) -> (libc::c_int, bool) {
    let mut ends = [0; 2];
    // SAFETY: two file descriptors are written.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0, "{}", Error::last_os_error());
    // SAFETY: both were just made, and nobody else has them.
    let [mut results, to_parent] = ends.map(|fd| unsafe { std::fs::File::from_raw_fd(fd) });
    // SAFETY: the child has this thread alone. It allocates nothing (`no_allocation.rs`) and takes no lock of another thread's.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", Error::last_os_error());
    if child == 0 {
        // SAFETY: takes numbers only.
        if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) } != 0 {
            end(3);
        }
        work();
        // SAFETY: the byte is in memory.
        unsafe { libc::write(to_parent.as_raw_fd(), [DONE].as_ptr().cast(), 1) };
        end(0);
    }
    drop(to_parent);
    let mut bytes = Vec::new();
    results.read_to_end(&mut bytes).unwrap();
    let mut status = 0;
    // SAFETY: the status is this function's own.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(!libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != 3, "this system allows no strict seccomp");
    (status, bytes == [DONE])
}

#[test]
fn the_hot_path_makes_no_system_call() {
    let (status, done) = strictly(|| {
        // SAFETY: takes nothing.
        unsafe { libc::syscall(libc::SYS_getppid) };
    });
    assert!(libc::WIFSIGNALED(status) && !done, "a system call is death");

    let mut rig = Rig::new(QUEUES, 12);
    // Warm: every translation is in the device TLB, memory is there, and what is lazy has happened.
    (0..3).for_each(|_| all_queues(&mut rig));
    let (status, done) = strictly(|| (0..50).for_each(|_| all_queues(&mut rig)));
    assert!(done, "48000 descriptors through a warm engine: a system call ended it (status {status:#x})");
}
