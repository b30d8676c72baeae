//! A truncated file must not kill the process.
//!
//! An access beyond the end of a mapped file raises `SIGBUS` (mmap(2)). Guest memory belongs to another process, which
//! may truncate it under our hands unless the file carries `F_SEAL_SHRINK`. The handler here puts zero pages over what
//! was lost, notes from which offset on, and returns: the access that faulted ends, and the code around it sees the
//! note.
//!
//! # What the handler may rely on (rule L10)
//! It runs in the middle of anything. It takes no lock, allocates nothing, and calls only what is async-signal-safe
//! (signal-safety(7)) or a plain system call (`mmap`, `sigaction`). It finds the mapping in a fixed table whose slots
//! are guarded by a sequence number each. The slot of the address that faulted cannot change meanwhile: whoever
//! accesses a mapping holds it, and a slot is given back only when its mapping is dropped. Other slots may change under
//! it.
//!
//! Addresses that are not ours, and causes other than an address beyond the file, go to the handler that was there
//! before (Rust's own stack-overflow handler, usually) or to the default action.
#![allow(unsafe_code, reason = "a signal handler reads its arguments and remaps memory")]

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::{c_int, c_void, siginfo_t};
use nix::errno::Errno;

pub(crate) use self::slot::Slot;

mod slot;

/// Most files that can be mapped at once without `F_SEAL_SHRINK`.
pub(crate) const SLOTS: usize = 256;

/// No byte is lost.
pub(crate) const NOTHING_LOST: usize = usize::MAX;

static TABLE: [Slot; SLOTS] = [const { Slot::free() }; SLOTS];

/// Orders those who take and give back slots. The handler does not take it.
static TABLE_WRITERS: Mutex<()> = Mutex::new(());

/// How many times something was lost in this process.
static LOSSES: AtomicU64 = AtomicU64::new(0);

/// How many times this process lost guest memory to a truncated file. Changes before any access can see what replaced
/// it.
pub(crate) fn losses() -> u64 {
    LOSSES.load(Ordering::Acquire)
}

/// A mapping's place in the table, given back when dropped: before the mapping itself goes.
#[derive(Debug)]
pub(crate) struct Guarded {
    slot: &'static Slot,
}

/// Why a mapping could not be guarded.
#[derive(Debug)]
pub(crate) enum GuardError {
    /// All of the table's slots are taken.
    Full,
    /// The handler could not be installed.
    Install(Errno),
}

impl Guarded {
    /// Guards `len` bytes from `base`, which are mapped, in pages of `page` bytes (a power of two).
    pub(crate) fn new(base: usize, len: usize, page: usize) -> Result<Self, GuardError> {
        assert!(base != 0 && page.is_power_of_two() && base.is_multiple_of(page));
        install().map_err(GuardError::Install)?;
        let _writers = TABLE_WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = TABLE.iter().find(|slot| slot.is_free()).ok_or(GuardError::Full)?;
        slot.set(base, len, page);
        Ok(Self { slot })
    }

    /// Offset of the first byte that is known to be lost, or [`NOTHING_LOST`]. After an access, this tells whether the
    /// access saw replaced memory.
    #[inline]
    pub(crate) fn lost_from(&self) -> usize {
        self.slot.lost_from()
    }

    /// Where that is kept.
    pub(crate) fn slot(&self) -> &'static Slot {
        self.slot
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _writers = TABLE_WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
        self.slot.set(0, 0, 0);
    }
}

/// What handled `SIGBUS` before us.
struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: written once, inside `install`'s OnceLock and before the handler that reads it is installed.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::zeroed()));

fn install() -> Result<(), Errno> {
    static INSTALLED: OnceLock<Result<(), Errno>> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // SAFETY: a null action only asks; the old one is written to storage of the right type, which nobody reads yet.
        let asked = unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), PREVIOUS.0.get().cast()) };
        Errno::result(asked)?;
        // SAFETY: all-zero is a valid sigaction: no flags, empty mask, default action.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigbus;
        action.sa_sigaction = handler as usize;
        // On the alternate stack, where there is one: the previous handler may be the one that reports stack overflow.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for and stays for the life of the process.
        let installed = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
        Errno::result(installed).map(drop)
    })
}

extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // The code that was interrupted may be about to read its own errno.
    let errno = Errno::last_raw();
    // SAFETY: the kernel passes a valid siginfo to a handler installed with SA_SIGINFO.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let ours = code == libc::BUS_ADRERR && replace_lost(address);
    Errno::set_raw(errno);
    if !ours {
        // SAFETY: the arguments are the kernel's own.
        unsafe { chain(signal, info, context) };
    }
}

/// Puts zero pages over everything from `address`'s page to the end of the mapping it is in. False if it is in none.
fn replace_lost(address: usize) -> bool {
    let Some((slot, (base, len, page))) = TABLE.iter().find_map(|slot| Some((slot, slot.find(address)?))) else {
        return false;
    };
    let offset = (address - base) & !(page - 1);
    // Noted before it is replaced: see `Guarded::lost_from`.
    slot.note_lost(offset);
    LOSSES.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the range is the tail of one of our mappings, from a page boundary of its file; it is mapped, since the
    // access that faulted holds the mapping; no Rust reference into guest memory exists.
    let replaced = unsafe {
        libc::mmap(
            (base + offset) as *mut c_void,
            len - offset,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    replaced != libc::MAP_FAILED
}

/// Does what would have been done had our handler not been there.
///
/// # Safety
/// The arguments are those of a handler that is running.
unsafe fn chain(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: `install` filled it before it installed the handler, and nobody has written it since.
    let previous = unsafe { (*PREVIOUS.0.get()).assume_init_ref() };
    // SAFETY: the kernel passes a valid siginfo.
    let sent = unsafe { (*info).si_code } <= 0;
    match previous.sa_sigaction {
        libc::SIG_IGN if sent => {}
        // A fault cannot be ignored: the kernel takes the default action for it too.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: all-zero is the default action.
            let action: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: the action is valid. After the return the faulting instruction runs again, now fatally.
            unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
            if sent {
                // SAFETY: raise is async-signal-safe; the signal is blocked here and is taken on return.
                unsafe { libc::raise(signal) };
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the previous owner installed it with SA_SIGINFO, so this is its signature.
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: the previous owner installed it without SA_SIGINFO, so this is its signature.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    use super::*;

    /// Names the case that the child is to run.
    const CASE: &str = "SVADEV_SIGBUS_CASE";

    /// A mapping of one page of an empty file: the first access raises SIGBUS.
    fn beyond_the_end() -> *mut u8 {
        let fd = memfd_create(c"short", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&fd, 4096).unwrap();
        // SAFETY: a new mapping changes no memory in use.
        let mapped = unsafe {
            nix::sys::mman::mmap(
                None,
                4096.try_into().unwrap(),
                nix::sys::mman::ProtFlags::PROT_READ,
                nix::sys::mman::MapFlags::MAP_SHARED,
                &fd,
                0,
            )
        }
        .unwrap();
        ftruncate(&fd, 0).unwrap();
        mapped.as_ptr().cast()
    }

    extern "C" fn leave_with_7(_: c_int) {
        // SAFETY: _exit is async-signal-safe.
        unsafe { libc::_exit(7) };
    }

    extern "C" fn leave_with_code(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
        // SAFETY: the kernel's siginfo, passed on.
        unsafe { libc::_exit(if (*info).si_code == libc::BUS_ADRERR { 8 } else { 9 }) };
    }

    fn set_previous(handler: usize, flags: c_int) {
        // SAFETY: all-zero is a valid action, filled with a handler of the signature that the flags ask for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler;
            action.sa_flags = flags;
            assert_eq!(libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()), 0);
        }
    }

    fn child(case: &str) {
        let (handler, flags, sent) = match case {
            "default" => (libc::SIG_DFL, 0, false),
            "ignored" => (libc::SIG_IGN, 0, false),
            "sent, default" => (libc::SIG_DFL, 0, true),
            "sent, ignored" => (libc::SIG_IGN, 0, true),
            "plain" => (leave_with_7 as extern "C" fn(c_int) as usize, 0, false),
            "siginfo" => {
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = leave_with_code;
                (handler as usize, libc::SA_SIGINFO, false)
            }
            other => panic!("no case {other}"),
        };
        set_previous(handler, flags);
        install().unwrap();
        if sent {
            // SAFETY: raising a signal at oneself is allowed; what it does is what is tested.
            unsafe { libc::raise(libc::SIGBUS) };
        } else {
            // SAFETY: mapped memory; the signal it raises is what is tested.
            unsafe { beyond_the_end().read_volatile() };
        }
        std::process::exit(0);
    }

    /// In a process of its own, whose handlers and death disturb nobody.
    fn run(case: &str) -> ExitStatus {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sigbus::tests::what_is_not_ours_goes_where_it_went_before", "--nocapture"])
            .env(CASE, case)
            .output()
            .unwrap()
            .status
    }

    #[test]
    fn what_is_not_ours_goes_where_it_went_before() {
        if let Ok(case) = std::env::var(CASE) {
            return child(&case);
        }
        assert_eq!(run("default").signal(), Some(libc::SIGBUS));
        assert_eq!(run("ignored").signal(), Some(libc::SIGBUS), "a fault cannot be ignored");
        assert_eq!(run("sent, default").signal(), Some(libc::SIGBUS));
        assert_eq!(run("sent, ignored").code(), Some(0));
        assert_eq!(run("plain").code(), Some(7));
        assert_eq!(run("siginfo").code(), Some(8));
    }

    #[test]
    fn slots_are_given_back() {
        let base = beyond_the_end() as usize;
        for _ in 0..2 * SLOTS {
            let guarded = Guarded::new(base, 4096, 4096).unwrap();
            assert_eq!(guarded.lost_from(), NOTHING_LOST);
        }
    }
}
