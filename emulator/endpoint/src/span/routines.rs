//! The loops that move and fill bytes, chosen for the CPU and for the length.
//!
//! All of them are inline assembly, or volatile accesses where there is none: the guest's CPUs may write the same bytes
//! at the same time, and a compiler must not reason about what it cannot know. Either operand's bytes may be any mix of
//! old and new then. Nothing is promised about the order or the width of single accesses, as for a device on a bus.
//!
//! # Which is taken
//! `cargo bench -p svadev-accelerator` measures it. On an Intel Xeon (family 6, model 207), out of the second-level
//! cache, the string instruction reaches 25 GB/s at 256 B where the loop has 32, and is within 5 % of it from 1 KiB
//! on, aligned or not; only where the target is not aligned and 8 KiB and more are moved is it faster, by a tenth. It
//! takes some 30 cycles to start, whatever CPUID says of *fast short* moves, so it is left to what is long. Up to 16
//! bytes, two overlapping integer moves; up to 128, overlapping 16-byte moves; then 32-byte moves where there is AVX;
//! from [`STRING_FROM`] on the string instruction where it is *enhanced* (Intel SDM vol. 1 §7.3.9.3), which for long
//! moves avoids reading what it overwrites.
//!
//! # Faults
//! An access to memory whose file was truncated raises `SIGBUS`; its handler replaces the memory and returns to the
//! same instruction. Each instruction here can be repeated: none has changed anything when it faults, and the string
//! instruction goes on where it stopped.
#![allow(unsafe_code, reason = "raw moves between host pointers")]

/// From here on the string instruction is no slower than a loop, bytes.
#[cfg(target_arch = "x86_64")]
const STRING_FROM: usize = 8 << 10;

/// Copies bytes.
///
/// # Safety
/// `len` bytes at `src` are readable and at `dst` writable. Either may be changed by others meanwhile. Where the two
/// overlap, what is in `dst` afterwards is any mix of bytes of `src`.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) unsafe fn move_bytes(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: each is given a length of its range, of memory the caller vouches for.
    unsafe {
        match len {
            0..=16 => x86::move_up_to_16(src, dst, len),
            17..=128 => x86::move_up_to_128(src, dst, len),
            STRING_FROM.. if std::is_x86_feature_detected!("ermsb") => x86::move_string(src, dst, len),
            _ if std::is_x86_feature_detected!("avx") => x86::move_avx(src, dst, len),
            _ => x86::move_string(src, dst, len),
        }
    }
}

/// Has the cache line at `at` fetched, if that is allowed. Accesses nothing: any address will do.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn prefetch(at: *const u8) {
    // SAFETY: a hint, which never faults (Intel SDM vol. 2B, PREFETCHh).
    unsafe { std::arch::x86_64::_mm_prefetch(at.cast(), std::arch::x86_64::_MM_HINT_T0) }
}

/// Has the cache line at `at` fetched, where there is a way to say so.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn prefetch(_at: *const u8) {}

/// As [`prefetch`], and takes the line away from other processors.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn prefetch_to_write(at: *const u8) {
    // SAFETY: a hint, which never faults; processors without it do nothing (Intel SDM vol. 2B, PREFETCHW).
    unsafe { std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
}

/// As [`prefetch`].
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn prefetch_to_write(_at: *const u8) {}

/// Stores a word `words` times, upwards, at any alignment.
///
/// # Safety
/// `8 * words` bytes at `dst` are writable.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) unsafe fn store_words(dst: *mut u8, word: u64, words: usize) {
    // SAFETY: the caller's promise is theirs.
    unsafe { if words <= 32 { x86::fill_loop(dst, word, words) } else { x86::fill_string(dst, word, words) } }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Every function: reads and writes exactly the bytes that its caller vouches for, as for the ones above; the
    //! direction flag is clear by the ABI.
    use std::arch::asm;

    /// `len <= 16`.
    #[inline]
    pub(super) unsafe fn move_up_to_16(src: *const u8, dst: *mut u8, len: usize) {
        // SAFETY: two moves of half the length or more, from either end, cover it and stay inside.
        unsafe {
            match len {
                8.. => asm!(
                    "mov {a}, [{s}]", "mov {b}, [{s} + {n} - 8]", "mov [{d}], {a}", "mov [{d} + {n} - 8], {b}",
                    s = in(reg) src, d = in(reg) dst, n = in(reg) len, a = out(reg) _, b = out(reg) _,
                    options(nostack, preserves_flags)),
                4.. => asm!(
                    "mov {a:e}, [{s}]", "mov {b:e}, [{s} + {n} - 4]", "mov [{d}], {a:e}", "mov [{d} + {n} - 4], {b:e}",
                    s = in(reg) src, d = in(reg) dst, n = in(reg) len, a = out(reg) _, b = out(reg) _,
                    options(nostack, preserves_flags)),
                _ => {
                    for n in 0..len {
                        dst.add(n).write_volatile(src.add(n).read_volatile());
                    }
                }
            }
        }
    }

    /// `16 < len <= 128`.
    #[inline]
    pub(super) unsafe fn move_up_to_128(src: *const u8, dst: *mut u8, len: usize) {
        // SAFETY: as above; from 33 bytes on two from either end, from 65 on four.
        unsafe {
            if len > 64 {
                asm!(
                    "movups {a}, [{s}]", "movups {b}, [{s} + 16]", "movups {c}, [{s} + 32]", "movups {e}, [{s} + 48]",
                    "movups [{d}], {a}", "movups [{d} + 16], {b}", "movups [{d} + 32], {c}", "movups [{d} + 48], {e}",
                    "movups {a}, [{s} + {n} - 64]", "movups {b}, [{s} + {n} - 48]",
                    "movups {c}, [{s} + {n} - 32]", "movups {e}, [{s} + {n} - 16]",
                    "movups [{d} + {n} - 64], {a}", "movups [{d} + {n} - 48], {b}",
                    "movups [{d} + {n} - 32], {c}", "movups [{d} + {n} - 16], {e}",
                    s = in(reg) src, d = in(reg) dst, n = in(reg) len,
                    a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, e = out(xmm_reg) _,
                    options(nostack, preserves_flags));
            } else if len > 32 {
                asm!(
                    "movups {a}, [{s}]", "movups {b}, [{s} + 16]",
                    "movups {c}, [{s} + {n} - 32]", "movups {e}, [{s} + {n} - 16]",
                    "movups [{d}], {a}", "movups [{d} + 16], {b}",
                    "movups [{d} + {n} - 32], {c}", "movups [{d} + {n} - 16], {e}",
                    s = in(reg) src, d = in(reg) dst, n = in(reg) len,
                    a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, e = out(xmm_reg) _,
                    options(nostack, preserves_flags));
            } else {
                asm!(
                    "movups {a}, [{s}]", "movups {b}, [{s} + {n} - 16]", "movups [{d}], {a}", "movups [{d} + {n} - 16], {b}",
                    s = in(reg) src, d = in(reg) dst, n = in(reg) len, a = out(xmm_reg) _, b = out(xmm_reg) _,
                    options(nostack, preserves_flags));
            }
        }
    }

    /// `len >= 128`, on a CPU with AVX.
    pub(super) unsafe fn move_avx(src: *const u8, dst: *mut u8, len: usize) {
        // SAFETY: whole blocks of 128 bytes below `len - 128`, and the last 128, which may overlap the last block.
        // `xmm` names the whole registers.
        unsafe {
            asm!(
                "2:",
                "vmovdqu ymm0, [{s}]", "vmovdqu ymm1, [{s} + 32]", "vmovdqu ymm2, [{s} + 64]", "vmovdqu ymm3, [{s} + 96]",
                "vmovdqu [{d}], ymm0", "vmovdqu [{d} + 32], ymm1", "vmovdqu [{d} + 64], ymm2", "vmovdqu [{d} + 96], ymm3",
                "add {s}, 128", "add {d}, 128", "sub {n}, 128", "ja 2b",
                // `n` is minus what the last block lacks, or 128 too few: the last 128 bytes end `n` past here.
                "vmovdqu ymm0, [{s} + {n}]", "vmovdqu ymm1, [{s} + {n} + 32]",
                "vmovdqu ymm2, [{s} + {n} + 64]", "vmovdqu ymm3, [{s} + {n} + 96]",
                "vmovdqu [{d} + {n}], ymm0", "vmovdqu [{d} + {n} + 32], ymm1",
                "vmovdqu [{d} + {n} + 64], ymm2", "vmovdqu [{d} + {n} + 96], ymm3",
                "vzeroupper",
                s = inout(reg) src => _, d = inout(reg) dst => _, n = inout(reg) len - 128 => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
                out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _,
                out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack));
        }
    }

    /// Any length.
    pub(super) unsafe fn move_string(src: *const u8, dst: *mut u8, len: usize) {
        // SAFETY: exactly `len` bytes.
        unsafe {
            asm!("rep movsb", inout("rcx") len => _, inout("rsi") src => _, inout("rdi") dst => _,
                options(nostack, preserves_flags));
        }
    }

    /// Any number of words.
    #[inline]
    pub(super) unsafe fn fill_loop(dst: *mut u8, word: u64, words: usize) {
        for n in 0..words {
            // SAFETY: exactly `words` words; assembly, since the address need not be aligned.
            unsafe {
                asm!("mov [{d} + 8 * {n}], {w}", d = in(reg) dst, n = in(reg) n, w = in(reg) word,
                    options(nostack, preserves_flags));
            }
        }
    }

    /// Any number of words.
    pub(super) unsafe fn fill_string(dst: *mut u8, word: u64, words: usize) {
        // SAFETY: exactly `words` words.
        unsafe {
            asm!("rep stosq", inout("rcx") words => _, inout("rdi") dst => _, in("rax") word,
                options(nostack, preserves_flags));
        }
    }
}

/// Copies bytes.
///
/// # Safety
/// `len` bytes at `src` are readable and at `dst` writable. Either may be changed by others meanwhile.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn move_bytes(src: *const u8, dst: *mut u8, len: usize) {
    for n in 0..len {
        // SAFETY: inside what the caller vouches for; volatile, since others may access it.
        unsafe { dst.add(n).write_volatile(src.add(n).read_volatile()) };
    }
}

/// Stores a word `words` times, upwards, at any alignment.
///
/// # Safety
/// `8 * words` bytes at `dst` are writable.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn store_words(dst: *mut u8, word: u64, words: usize) {
    for (n, byte) in word.to_ne_bytes().iter().cycle().take(words * 8).enumerate() {
        // SAFETY: inside what the caller vouches for.
        unsafe { dst.add(n).write_volatile(*byte) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every length around the choices between loops, at several alignments: what is asked for and nothing else.
    #[test]
    fn every_loop_moves_exactly_what_it_is_told() {
        let source: Vec<u8> = (0..20_000u32).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect();
        let lengths = (0..300).chain([511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193, 10_000]);
        for len in lengths {
            for (from, to) in [(0, 0), (1, 0), (3, 5), (63, 31)] {
                let mut target = vec![255; len + 64 + to];
                // SAFETY: both ranges lie in their vectors.
                unsafe { move_bytes(source.as_ptr().add(from), target.as_mut_ptr().add(to), len) };
                assert_eq!(target[to..to + len], source[from..from + len], "{len} bytes from {from} to {to}");
                assert!(target[..to].iter().chain(&target[to + len..]).all(|&b| b == 255), "{len} bytes: beyond");
            }
        }
    }

    /// Those that this CPU does not choose, too, where it has them.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn loops_agree_on_every_length() {
        let source: Vec<u8> = (0..2000u32).map(|n| u8::try_from(n * 11 % 253).unwrap()).collect();
        for len in 128..1500 {
            let (mut string, mut avx) = (vec![0; 2000], vec![0; 2000]);
            // SAFETY: both ranges lie in their vectors, and AVX is there.
            unsafe {
                x86::move_string(source.as_ptr(), string.as_mut_ptr(), len);
                if std::is_x86_feature_detected!("avx") {
                    x86::move_avx(source.as_ptr(), avx.as_mut_ptr(), len);
                    assert_eq!(string, avx, "{len}");
                }
            }
        }
    }

    #[test]
    fn words_are_stored_at_any_alignment() {
        for words in [0, 1, 31, 32, 33, 100] {
            let mut target = vec![0u8; 8 * words + 16];
            // SAFETY: inside the vector.
            unsafe { store_words(target.as_mut_ptr().add(3), 0x0807_0605_0403_0201, words) };
            let expected: Vec<u8> = (0..8 * words).map(|n| u8::try_from(n % 8 + 1).unwrap()).collect();
            assert_eq!(target[3..3 + 8 * words], expected);
            assert!(target[..3].iter().chain(&target[3 + 8 * words..]).all(|&b| b == 0));
        }
    }
}
