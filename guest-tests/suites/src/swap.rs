//! Swap space in a disk in memory, so that anonymous pages can be reclaimed.
#![allow(unsafe_code, reason = "swapon(2) and swapoff(2)")]
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::harness::{During, Verdict};
use crate::skip;

/// The disk, once its driver is there.
const DISK: &str = "/dev/ram0";
/// Where the launcher puts the driver.
const MODULE: &str = "/svadev/brd.ko";
/// One disk of 16 MiB.
const PARAMETERS: &str = "rd_nr=1 rd_size=16384";
const PAGES: u32 = 4096;
/// `MODULE_INIT_COMPRESSED_FILE` of include/uapi/linux/module.h.
const COMPRESSED_FILE: u32 = 4;

/// Swap space, until dropped.
#[derive(Debug)]
pub struct Swap(CString);

impl Swap {
    /// Swaps to a disk in memory from now on.
    ///
    /// # Errors
    /// The kernel has no such disks, or refuses.
    pub fn on() -> Verdict<Self> {
        if !Path::new(DISK).exists() {
            load()?;
        }
        // include/linux/swap.h, union swap_header: version, last page, bad pages; and the signature at the page's end.
        let mut header = [0; 4096];
        header[1024..1028].copy_from_slice(&1u32.to_le_bytes());
        header[1028..1032].copy_from_slice(&(PAGES - 1).to_le_bytes());
        header[4086..].copy_from_slice(b"SWAPSPACE2");
        File::options().write(true).open(DISK)?.write_all_at(&header, 0).during(DISK)?;
        let disk = CString::new(DISK).expect("no zero byte");
        // SAFETY: the path is a string that lives through the call.
        Errno::result(unsafe { libc::swapon(disk.as_ptr(), 0) }).during("swapon")?;
        Ok(Self(disk))
    }

    /// Pages that were written to swap since the machine booted.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn written() -> Verdict<u64> {
        let text = std::fs::read_to_string("/proc/vmstat")?;
        let value = text.lines().find_map(|line| line.strip_prefix("pswpout ")).unwrap_or_default();
        value.parse().during("pswpout")
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // SAFETY: the path is a string that lives through the call.
        let _ = unsafe { libc::swapoff(self.0.as_ptr()) };
    }
}

fn load() -> Verdict {
    if !Path::new(MODULE).exists() {
        skip!("the kernel has no disk in memory: there is neither {DISK} nor {MODULE}");
    }
    let mut file = File::open(MODULE)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic)?;
    let compressed = &magic != b"\x7fELF";
    let flags = if compressed { COMPRESSED_FILE } else { 0 };
    let parameters = CString::new(PARAMETERS).expect("no zero byte");
    finit_module(&File::open(MODULE)?, &parameters, ModuleInitFlags::from_bits_retain(flags)).during("load brd")?;
    Ok(())
}
