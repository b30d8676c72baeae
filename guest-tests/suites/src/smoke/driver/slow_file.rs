//! A file whose pages do not come until the test says so: a file system in user space (FUSE) that holds reads back.
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use svadev_guest::{Buffer, PAGE_SIZE};

use crate::harness::peer::{Line, Peer};
use crate::harness::{During, Verdict};
use crate::skip;

/// Pages of the file.
const PAGES: u64 = 4;
/// Longest request (include/uapi/linux/fuse.h: `FUSE_MIN_READ_BUFFER` is 8192).
const REQUEST: usize = 1 << 16;
/// Bytes of `struct fuse_in_header`.
const HEADER: usize = 40;

// include/uapi/linux/fuse.h, enum fuse_opcode.
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;

/// The file, and the process that serves it. Unmounted when dropped.
pub(super) struct SlowFile {
    path: PathBuf,
    /// Bit by bit: the reads may be answered.
    go: EventFd,
    server: Peer,
}

impl SlowFile {
    /// Mounts it. Its process dies with the test's.
    pub(super) fn mount() -> Verdict<Self> {
        if !Path::new("/dev/fuse").exists() {
            skip!("the kernel has no FUSE");
        }
        let path = std::env::temp_dir().join(format!("svadev-slow-{}", std::process::id()));
        std::fs::create_dir_all(std::env::temp_dir())?;
        std::fs::write(&path, "").during(path.display())?;
        let go = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
        let mut server = Peer::start(|line| serve(line, &path, &go))?;
        server.line.recv().during("mount a file system in user space")?;
        Ok(Self { path, go, server })
    }

    /// Maps the file's pages, none of which is there.
    pub(super) fn map(&self) -> Verdict<Buffer> {
        let file = File::options().read(true).write(true).open(&self.path).during(self.path.display())?;
        // The kernel asks for its length.
        file.metadata()?;
        Ok(Buffer::file(&file, 0, PAGE_SIZE, true)?)
    }

    /// Waits until somebody needs a page.
    pub(super) fn wait_for_read(&mut self) -> Verdict {
        self.server.line.recv().during("wait for a read of the slow file").map(drop)
    }

    /// Lets the pages come, those asked for by now and all later ones.
    pub(super) fn let_go(&self) -> Verdict {
        self.go.write(1)?;
        Ok(())
    }
}

impl Drop for SlowFile {
    fn drop(&mut self) {
        let _ = self.go.write(1);
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Mounts, and answers until the file system is unmounted.
fn serve(line: &mut Line, path: &Path, go: &EventFd) -> Verdict {
    let mut fuse = File::options().read(true).write(true).open("/dev/fuse").during("/dev/fuse")?;
    let options = format!("fd={},rootmode=100644,user_id=0,group_id=0", fuse.as_raw_fd());
    mount(Some("svadev-slow"), path, Some("fuse"), MsFlags::empty(), Some(options.as_str())).during("mount")?;
    line.send(0)?;
    let mut held = Vec::new();
    let mut slow = true;
    loop {
        let mut fds = [PollFd::new(fuse.as_fd(), PollFlags::POLLIN), PollFd::new(go.as_fd(), PollFlags::POLLIN)];
        let watched = if slow { 2 } else { 1 };
        poll(&mut fds[..watched], PollTimeout::NONE)?;
        let asked = fds[0].any() == Some(true);
        if slow && fds[1].any() == Some(true) {
            slow = false;
            for (unique, size) in held.drain(..) {
                reply(&mut fuse, unique, &vec![0x5a; size])?;
            }
        }
        if !asked {
            continue;
        }
        let mut request = vec![0; REQUEST];
        let length = match fuse.read(&mut request) {
            Ok(length) => length,
            Err(e) if e.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(()),
            // It was taken back before we read it.
            Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => continue,
            Err(e) => return Err(e).during("read /dev/fuse"),
        };
        let (opcode, unique) = (u32_at(&request, 4), u64_at(&request, 8));
        assert!(length >= HEADER, "a request has a header");
        match opcode {
            INIT => {
                // struct fuse_init_out, minor version 31.
                let mut out = [0; 64];
                out[..4].copy_from_slice(&7u32.to_le_bytes());
                out[4..8].copy_from_slice(&31u32.to_le_bytes());
                out[20..24].copy_from_slice(&4096u32.to_le_bytes());
                reply(&mut fuse, unique, &out)?;
            }
            GETATTR => {
                // struct fuse_attr_out.
                let mut out = [0; 104];
                out[16..24].copy_from_slice(&1u64.to_le_bytes());
                out[24..32].copy_from_slice(&(PAGES * PAGE_SIZE as u64).to_le_bytes());
                out[76..80].copy_from_slice(&0o100_644u32.to_le_bytes());
                out[80..84].copy_from_slice(&1u32.to_le_bytes());
                out[96..100].copy_from_slice(&4096u32.to_le_bytes());
                reply(&mut fuse, unique, &out)?;
            }
            OPEN => reply(&mut fuse, unique, &[0; 16])?,
            READ => {
                let size = usize::try_from(u32_at(&request, HEADER + 16))?;
                if slow {
                    held.push((unique, size));
                    line.send(0)?;
                } else {
                    reply(&mut fuse, unique, &vec![0x5a; size])?;
                }
            }
            RELEASE | FLUSH => reply(&mut fuse, unique, &[])?,
            FORGET | INTERRUPT => {}
            _ => answer(&mut fuse, unique, -libc::ENOSYS, &[])?,
        }
    }
}

fn reply(fuse: &mut File, unique: u64, out: &[u8]) -> Verdict {
    answer(fuse, unique, 0, out)
}

/// `struct fuse_out_header` and what follows it.
fn answer(fuse: &mut File, unique: u64, error: i32, out: &[u8]) -> Verdict {
    let mut message = Vec::with_capacity(16 + out.len());
    message.extend(u32::try_from(16 + out.len())?.to_le_bytes());
    message.extend(error.to_le_bytes());
    message.extend(unique.to_le_bytes());
    message.extend(out);
    match fuse.write(&message) {
        // Whoever asked is gone.
        Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(()),
        result => result.map(drop).during("answer"),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
