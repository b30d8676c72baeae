//! `recvmsg` and `sendmsg` with descriptors.
//!
//! By libc, since nix gives up the descriptors of a receive that the kernel cut short, which would leak them.
#![allow(unsafe_code, reason = "ancillary data is read and written through raw pointers")]
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::outbox::Transmit;

/// Most descriptors that Linux passes at once (`SCM_MAX_FD` of `include/net/scm.h`).
const SCM_MAX_FD: usize = 253;
/// Ancillary data of that many descriptors, with its header and padding, bytes; as `u64`s, whose alignment `cmsghdr`
/// needs.
const CONTROL_WORDS: usize = 2 + (SCM_MAX_FD * size_of::<RawFd>()).div_ceil(8);

/// What one receive brought.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Bytes; 0 at the end of the stream.
    pub(crate) bytes: usize,
    /// Descriptors, closed on exec.
    pub(crate) fds: Vec<OwnedFd>,
    /// There were more, which the kernel could not pass on.
    pub(crate) fds_lost: bool,
}

/// Receives into `buf` without blocking. Errors: `WouldBlock` when nothing is there.
pub(crate) fn receive(stream: &UnixStream, buf: &mut [u8]) -> io::Result<Received> {
    let mut control = [MaybeUninit::<u64>::uninit(); CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut msg = empty_msghdr(&mut iov);
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `msg` points to `iov`, which describes `buf`, and to `control`; all three live and are ours during the
    // call.
    let n = unsafe { libc::recvmsg(stream.as_raw_fd(), &mut msg, flags) };
    let Ok(bytes) = usize::try_from(n) else { return Err(io::Error::last_os_error()) };
    let mut received = Received { bytes, fds: Vec::new(), fds_lost: msg.msg_flags & libc::MSG_CTRUNC != 0 };
    // SAFETY: recvmsg succeeded, so `msg_control` and `msg_controllen` describe initialised ancillary data in
    // `control`.
    let mut cmsg = unsafe { libc::CMSG_FIRSTHDR(&msg) };
    while !cmsg.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return a pointer to a whole, aligned header inside `control`, or null.
        let header = unsafe { *cmsg };
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN(0) is the header's length, and the kernel wrote `cmsg_len` bytes from `cmsg` on.
            let (data, overhead) = unsafe { (libc::CMSG_DATA(cmsg).cast::<RawFd>(), libc::CMSG_LEN(0) as usize) };
            for i in 0..header.cmsg_len.saturating_sub(overhead) / size_of::<RawFd>() {
                // SAFETY: the i-th of the descriptors that the kernel wrote. It just opened it for us, and nothing else
                // knows it.
                received.fds.push(unsafe { OwnedFd::from_raw_fd(data.add(i).read_unaligned()) });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        cmsg = unsafe { libc::CMSG_NXTHDR(&msg, cmsg) };
    }
    Ok(received)
}

/// The sending end of a connection.
pub(crate) struct UnixTransmit(pub(crate) Arc<UnixStream>);

impl Transmit for UnixTransmit {
    fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        send(&self.0, bytes, fds)
    }
}

/// Sends without blocking, the descriptors with the first byte. Errors: `WouldBlock` if there is no room.
pub(crate) fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    assert!(fds.len() <= SCM_MAX_FD, "a reply has few descriptors");
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut msg = empty_msghdr(&mut iov);
    if !fds.is_empty() {
        let len = u32::try_from(size_of_val(fds)).expect("few descriptors");
        msg.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes. `control` has room for SCM_MAX_FD descriptors and one header.
        msg.msg_controllen = unsafe { libc::CMSG_SPACE(len) } as usize;
        // SAFETY: `control` is zeroed, aligned and longer than `msg_controllen`, so the first header is inside it, and
        // the descriptors after it; BorrowedFd is a transparent RawFd, and the borrows outlive the call.
        unsafe {
            let cmsg = libc::CMSG_FIRSTHDR(&msg);
            (*cmsg).cmsg_level = libc::SOL_SOCKET;
            (*cmsg).cmsg_type = libc::SCM_RIGHTS;
            (*cmsg).cmsg_len = libc::CMSG_LEN(len) as usize;
            let data = libc::CMSG_DATA(cmsg).cast::<RawFd>();
            data.copy_from_nonoverlapping(fds.as_ptr().cast(), fds.len());
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `msg` points to `iov`, which describes `bytes` (only read, despite the cast), and to `control`.
    let n = unsafe { libc::sendmsg(stream.as_raw_fd(), &msg, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// A message with data and nothing else.
fn empty_msghdr(iov: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: msghdr is plain data, and all zeros is a valid one: null pointers with length 0.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = iov;
    msg.msg_iovlen = 1;
    msg
}
