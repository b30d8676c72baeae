//! Regions, rights, identity of files, truncation, change under readers, and a naive model.
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::{ftruncate, pipe};
use proptest::prelude::*;

use super::*;

const PAGE: u64 = PAGE_SIZE as u64;

fn memfd(pages: u64) -> File {
    let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    ftruncate(&fd, i64::try_from(pages * PAGE).unwrap()).unwrap();
    fd.into()
}

/// The same file under another descriptor, as every message brings one.
fn fd(file: &File) -> Option<OwnedFd> {
    Some(file.try_clone().unwrap().into())
}

fn region(gpa: u64, pages: u64, file: &File, offset_pages: u64) -> Region {
    Region {
        gpa: GuestAddress(gpa),
        size: pages * PAGE,
        offset: offset_pages * PAGE,
        read: true,
        write: true,
        fd: fd(file),
    }
}

fn read<const N: usize>(map: &MemoryMap, gpa: u64) -> Result<[u8; N], MemoryError> {
    let mut buf = [0; N];
    map.read(GuestAddress(gpa), &mut buf).map(|()| buf)
}

#[test]
fn regions_show_their_part_of_the_file() {
    let file = memfd(8);
    file.write_all_at(b"third", 3 * PAGE).unwrap();
    let map = MemoryMap::new(Mappings::new());
    map.map(region(0x10_0000, 2, &file, 3)).unwrap();
    assert_eq!(&read::<5>(&map, 0x10_0000).unwrap(), b"third");
    map.write(GuestAddress(0x10_1ff8), b"8 bytes!").unwrap();
    let mut seen = [0; 8];
    file.read_exact_at(&mut seen, 5 * PAGE - 8).unwrap();
    assert_eq!(&seen, b"8 bytes!");

    map.write(GuestAddress(0x10_0000), &7_u64.to_le_bytes()).unwrap();
    assert_eq!(map.load_u64(GuestAddress(0x10_0000)), Ok(7));
    assert_eq!(map.compare_exchange_u64(GuestAddress(0x10_0000), 7, 9), Ok(Ok(7)));
    assert_eq!(map.compare_exchange_u64(GuestAddress(0x10_0000), 7, 9), Ok(Err(9)));
    map.store_u32(GuestAddress(0x10_0004), 1).unwrap();
    assert_eq!(map.load_u64(GuestAddress(0x10_0000)), Ok(1 << 32 | 9));
    assert_eq!(map.load_u64(GuestAddress(0x10_0004)), Err(MemoryError::Misaligned(0x10_0004)));
    assert_eq!(map.store_u32(GuestAddress(0x10_0002), 0), Err(MemoryError::Misaligned(0x10_0002)));

    for (gpa, at) in [(0xf_ffff, 0xf_ffff), (0x10_1fff, 0x10_2000), (u64::MAX, u64::MAX)] {
        assert_eq!(read::<2>(&map, gpa), Err(MemoryError::NotMapped(at)));
    }
    assert_eq!(read::<0>(&map, 0x5000), Ok([]), "no byte is accessed");
}

#[test]
fn an_access_spans_adjacent_regions_and_stops_at_a_hole() {
    let (low, high) = (memfd(1), memfd(4));
    let map = MemoryMap::new(Mappings::new());
    map.map(region(0x2000, 1, &high, 2)).unwrap();
    map.map(region(0x1000, 1, &low, 0)).unwrap();
    map.map(region(0x3000, 1, &low, 0)).unwrap();
    map.map(region(0x5000, 1, &low, 0)).unwrap();
    let bytes: Vec<u8> = (0..0x2801_usize).map(|i| u8::try_from(i % 251).unwrap()).collect();
    map.write(GuestAddress(0x1800), &bytes[..0x2000]).unwrap();
    let mut back = vec![0; 0x1000];
    map.read(GuestAddress(0x1800), &mut back).unwrap();
    // 0x3000 shows the same file page as 0x1000, and was written last there; their written halves do not meet.
    assert_eq!(back, bytes[..0x1000]);
    assert_eq!(map.write(GuestAddress(0x1800), &bytes), Err(MemoryError::NotMapped(0x4000)));
    assert_eq!(map.read(GuestAddress(0x3ffc), &mut [0; 8]), Err(MemoryError::NotMapped(0x4000)));
}

#[test]
fn rights_are_the_regions_own() {
    let file = memfd(2);
    let map = MemoryMap::new(Mappings::new());
    map.map(Region { write: false, ..region(0x1000, 1, &file, 0) }).unwrap();
    map.map(Region { read: false, ..region(0x2000, 1, &file, 1) }).unwrap();
    assert_eq!(read::<1>(&map, 0x1fff), Ok([0]));
    assert_eq!(read::<2>(&map, 0x1fff), Err(MemoryError::Forbidden(0x2000)));
    assert_eq!(map.write(GuestAddress(0x1000), &[1]), Err(MemoryError::Forbidden(0x1000)));
    assert_eq!(map.store_u32(GuestAddress(0x1000), 1), Err(MemoryError::Forbidden(0x1000)));
    assert_eq!(map.load_u64(GuestAddress(0x2000)), Err(MemoryError::Forbidden(0x2000)));
    map.store_u32(GuestAddress(0x2000), 1).unwrap();
    for gpa in [0x1000, 0x2000] {
        let denied = map.compare_exchange_u64(GuestAddress(gpa), 0, 1);
        assert_eq!(denied, Err(MemoryError::Forbidden(gpa)));
    }
    let window = map.window(GuestAddress(0x1abc)).unwrap();
    assert_eq!((window.gpa, window.len), (GuestAddress(0x1000), PAGE));
    assert!(window.readable && !window.writable);
}

#[test]
fn regions_without_a_file_are_there_but_unreachable() {
    let map = MemoryMap::new(Mappings::new());
    map.map(Region { fd: None, ..region(0xf_0000, 16, &memfd(1), 0) }).unwrap();
    let unreachable = MemoryError::Unreachable(0xf_0008);
    assert_eq!(read::<4>(&map, 0xf_0008), Err(unreachable));
    assert_eq!(map.load_u64(GuestAddress(0xf_0008)), Err(unreachable));
    assert_eq!(map.window(GuestAddress(0xf_0008)).unwrap_err(), unreachable);
    assert_eq!(map.map(region(0xf_f000, 1, &memfd(1), 0)), Err(MapError::Overlap(0xf_f000)));
    assert_eq!(map.unmap(GuestAddress(0xf_0000), 16 * PAGE).unwrap().bytes(), 16 * PAGE);
}

#[test]
fn what_cannot_be_mapped_is_refused_and_changes_nothing() {
    let file = memfd(4);
    let map = MemoryMap::new(Mappings::new());
    map.map(region(0x10_0000, 2, &file, 0)).unwrap();
    let generation = map.generation();
    let refused = |region: Region| map.map(region).unwrap_err();
    let good = || region(0x20_0000, 1, &file, 0);
    assert_eq!(refused(Region { size: 0, ..good() }), MapError::Empty);
    assert_eq!(refused(Region { size: 0x800, ..good() }), MapError::Unaligned);
    assert_eq!(refused(Region { offset: 1, ..good() }), MapError::Unaligned);
    assert_eq!(refused(Region { gpa: GuestAddress(0x20_0010), ..good() }), MapError::Unaligned);
    assert_eq!(refused(Region { gpa: GuestAddress(0u64.wrapping_sub(PAGE)), ..good() }), MapError::Overflow);
    assert_eq!(refused(Region { offset: 0u64.wrapping_sub(PAGE), ..good() }), MapError::Overflow);
    assert_eq!(refused(region(0xf_f000, 2, &file, 0)), MapError::Overlap(0x10_0000));
    assert_eq!(refused(region(0x10_1000, 2, &file, 0)), MapError::Overlap(0x10_1000));
    let beyond = MappingError::BeyondFile { end: 5 * PAGE, len: 4 * PAGE };
    assert_eq!(refused(region(0x20_0000, 2, &file, 3)), MapError::Mapping(beyond));
    let (pipe_end, _other) = pipe().unwrap();
    assert_eq!(refused(Region { fd: Some(pipe_end), ..good() }), MapError::Mapping(MappingError::NotAFile));
    assert_eq!(map.generation(), generation);
    assert_eq!(map.regions(), [(GuestAddress(0x10_0000), 2 * PAGE, true)]);
}

#[test]
fn a_file_that_may_not_be_written_backs_read_only_regions() {
    let mappings = Mappings::new();
    let map = MemoryMap::new(mappings.clone());
    let sealed = memfd(1);
    fcntl(&sealed, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
    let file = memfd(1);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let read_only: File = open(path.as_str(), OFlag::O_RDONLY, Mode::empty()).unwrap().into();
    for (gpa, file) in [(0x1000, &sealed), (0x2000, &read_only)] {
        let refused = map.map(region(gpa, 1, file, 0)).unwrap_err();
        assert_eq!(refused, MapError::Mapping(MappingError::ReadOnlyFile));
        map.map(Region { write: false, ..region(gpa, 1, file, 0) }).unwrap();
        assert_eq!(map.load_u64(GuestAddress(gpa)), Ok(0));
    }
    // The same file with both rights is another mapping: this one's pages are not writable in the host either.
    map.map(region(0x3000, 1, &file, 0)).unwrap();
    map.store_u32(GuestAddress(0x3000), 5).unwrap();
    assert_eq!(map.load_u64(GuestAddress(0x2000)), Ok(5));
    assert_eq!(mappings.len(), 3);
}

#[test]
fn unmap_takes_whole_regions_only() {
    let file = memfd(8);
    let map = MemoryMap::new(Mappings::new());
    for gpa in [0x1000, 0x3000, 0x8000] {
        map.map(region(gpa, 2, &file, 0)).unwrap();
    }
    let generation = map.generation();
    let refused = |gpa, size| map.unmap(GuestAddress(gpa), size).unwrap_err();
    assert_eq!(refused(0x1000, 0), UnmapError::Empty);
    assert_eq!(refused(0x1000, 0x1800), UnmapError::Unaligned);
    assert_eq!(refused(0x8001, PAGE), UnmapError::Unaligned);
    assert_eq!(refused(0u64.wrapping_sub(PAGE), PAGE), UnmapError::Overflow);
    assert_eq!(refused(0x5000, 3 * PAGE), UnmapError::NotMapped);
    assert_eq!(refused(0x1000, PAGE), UnmapError::Splits(0x1000));
    assert_eq!(refused(0x1000, 3 * PAGE), UnmapError::Splits(0x3000));
    assert_eq!(refused(0x2000, 3 * PAGE), UnmapError::Splits(0x1000));
    assert_eq!(refused(0x4000, 8 * PAGE), UnmapError::Splits(0x3000));
    assert_eq!(map.generation(), generation);

    let retired = map.unmap(GuestAddress(0), 6 * PAGE).unwrap();
    let ranges: Vec<_> = retired.ranges().collect();
    assert_eq!(ranges, [(GuestAddress(0x1000), 2 * PAGE), (GuestAddress(0x3000), 2 * PAGE)]);
    assert_ne!(map.generation(), generation);
    assert_eq!(map.load_u64(GuestAddress(0x1000)), Err(MemoryError::NotMapped(0x1000)));
    assert_eq!(map.load_u64(GuestAddress(0x8000)), Ok(0));
    assert_eq!(refused(0, 6 * PAGE), UnmapError::NotMapped, "a second unmap is an error that changes nothing");
    assert_eq!(map.unmap_all().bytes(), 2 * PAGE);
    assert!(map.unmap_all().is_empty());
}

#[test]
fn a_file_is_mapped_once_and_lives_as_long_as_its_last_holder() {
    let mappings = Mappings::new();
    let (one, other) = (MemoryMap::new(mappings.clone()), MemoryMap::new(mappings.clone()));
    let file = memfd(64);
    one.map(region(0, 16, &file, 0)).unwrap();
    one.map(region(0x10_0000, 16, &file, 16)).unwrap();
    other.map(region(0, 64, &file, 0)).unwrap();
    assert_eq!(mappings.len(), 1);
    let window = one.window(GuestAddress(0x10_0000)).unwrap();
    let whole = other.window(GuestAddress(0)).unwrap();
    assert_eq!(window.host.as_ptr() as usize - whole.host.as_ptr() as usize, 16 * PAGE_SIZE);

    let retired = one.unmap_all();
    drop(other);
    assert_eq!(mappings.len(), 1, "retired regions keep the mapping");
    #[allow(unsafe_code, reason = "what a holder of windows does")]
    // SAFETY: `retired` keeps the window's memory mapped.
    unsafe {
        window.host.as_ptr().write_volatile(0x5a);
    }
    let mut byte = [0];
    file.read_exact_at(&mut byte, 16 * PAGE).unwrap();
    assert_eq!(byte, [0x5a]);
    drop(retired);
    assert!(mappings.is_empty());
    assert!(!is_mapped(window.host.as_ptr() as usize), "the host memory is given back");
}

/// Whether the kernel has anything at a host address. Another thread may map something there at any moment, but what
/// it maps is not a memfd called `guest` of 64 pages.
fn is_mapped(address: usize) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:guest")).any(|line| {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let (start, end) = (usize::from_str_radix(start, 16).unwrap(), usize::from_str_radix(end, 16).unwrap());
        (start..end).contains(&address) && end - start == 64 * PAGE_SIZE
    })
}

#[test]
fn a_file_that_has_grown_is_mapped_anew() {
    let file = memfd(1);
    let map = MemoryMap::new(Mappings::new());
    map.map(region(0, 1, &file, 0)).unwrap();
    file.set_len(4 * PAGE).unwrap();
    map.map(region(0x1000, 1, &file, 3)).unwrap();
    map.map(region(0x2000, 1, &file, 0)).unwrap();
    map.store_u32(GuestAddress(0), 11).unwrap();
    map.store_u32(GuestAddress(0x1000), 22).unwrap();
    assert_eq!(map.load_u64(GuestAddress(0x2000)), Ok(11));
    assert_eq!(map.load_u64(GuestAddress(0x1000)), Ok(22));
}

#[test]
fn a_truncated_file_loses_its_memory_and_nothing_else() {
    let (file, whole) = (memfd(8), memfd(1));
    let map = MemoryMap::new(Mappings::new());
    map.map(region(0x10_0000, 4, &file, 0)).unwrap();
    map.map(region(0x10_4000, 4, &file, 4)).unwrap();
    map.map(region(0x20_0000, 1, &whole, 0)).unwrap();
    map.write(GuestAddress(0x10_0000), &[7; 0x8000]).unwrap();
    let generation = map.generation();
    file.set_len(2 * PAGE).unwrap();

    // Nobody has touched it yet. The access that finds out is refused, and so is every later one.
    assert_eq!(map.load_u64(GuestAddress(0x10_3000)), Err(MemoryError::Lost(0x10_3000)));
    assert_ne!(map.generation(), generation, "windows are stale");
    assert_eq!(map.load_u64(GuestAddress(0x10_3000)), Err(MemoryError::Lost(0x10_3000)));
    assert_eq!(map.store_u32(GuestAddress(0x10_7000), 1), Err(MemoryError::Lost(0x10_7000)));
    assert_eq!(read::<16>(&map, 0x10_2ff8), Err(MemoryError::Lost(0x10_2ff8)), "and so is more of it");
    assert_eq!(map.write(GuestAddress(0x10_2000), &[1; 4]), Err(MemoryError::Lost(0x10_2000)));
    // A page on both sides: the address is the first lost byte's.
    assert_eq!(read::<16>(&map, 0x10_1ff8), Err(MemoryError::Lost(0x10_2000)));
    // What the file still has goes on.
    assert_eq!(read::<8>(&map, 0x10_1ff8), Ok([7; 8]));
    assert_eq!(map.load_u64(GuestAddress(0x20_0000)), Ok(0));
    assert_eq!(map.window(GuestAddress(0x10_1000)).unwrap().len, 2 * PAGE);
    assert_eq!(map.window(GuestAddress(0x10_2000)).unwrap_err(), MemoryError::Lost(0x10_2000));
    assert_eq!(map.window(GuestAddress(0x10_4000)).unwrap_err(), MemoryError::Lost(0x10_4000));

    // Whole again and mapped again, it is as good as new; the old regions stay lost.
    file.set_len(8 * PAGE).unwrap();
    map.map(region(0x30_0000, 8, &file, 0)).unwrap();
    assert_eq!(read::<4>(&map, 0x30_1ffe), Ok([7, 7, 0, 0]));
    assert_eq!(map.load_u64(GuestAddress(0x10_3000)), Err(MemoryError::Lost(0x10_3000)));
}

#[test]
fn a_file_truncated_under_readers_is_seen_whole_or_not_at_all() {
    for _ in 0..20 {
        let file = memfd(64);
        let map = MemoryMap::new(Mappings::new());
        map.map(region(0, 64, &file, 0)).unwrap();
        map.write(GuestAddress(0), &[0xa5; 64 * PAGE_SIZE]).unwrap();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3_u64)
                .map(|n| {
                    let map = &map;
                    scope.spawn(move || {
                        // Ends: from the moment the file is empty the first byte read is lost.
                        for i in 0_u64.. {
                            match read::<256>(map, ((i * 17 + n * 5) % 64) * PAGE) {
                                // A page that goes in the middle of a copy may leave old bytes, but never zeros that
                                // pass for data.
                                Ok(bytes) => assert_eq!(bytes, [0xa5; 256]),
                                Err(error) => {
                                    assert!(matches!(error, MemoryError::Lost(_)));
                                    return;
                                }
                            }
                        }
                    })
                })
                .collect();
            file.set_len(0).unwrap();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    }
}

#[test]
fn readers_see_the_map_before_or_after_a_change() {
    let files = [memfd(1), memfd(1)];
    for (fill, file) in [0xaa, 0xbb].into_iter().zip(&files) {
        file.write_all_at(&[fill; PAGE_SIZE], 0).unwrap();
    }
    let fixed = memfd(1);
    fixed.write_all_at(&[0xcc; PAGE_SIZE], 0).unwrap();
    let map = MemoryMap::new(Mappings::new());
    map.map(region(0x1000, 1, &fixed, 0)).unwrap();
    let (stop, hits) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Over the edge of a region that is always there and one that comes and goes.
                    match read::<64>(&map, 0x1fe0) {
                        Ok(bytes) => {
                            assert_eq!(bytes[..32], [0xcc; 32]);
                            assert!(bytes[32..] == [0xaa; 32] || bytes[32..] == [0xbb; 32], "{bytes:x?}");
                            hits.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => assert_eq!(error, MemoryError::NotMapped(0x2000)),
                    }
                }
            });
        }
        // At least so many changes, and as many as it takes for the readers to have met both answers.
        let mut changes = 0_u64;
        while changes < 2000 || hits.load(Ordering::Relaxed) < 1000 {
            let before = map.generation();
            map.map(region(0x2000, 1, &files[usize::try_from(changes % 2).unwrap()], 0)).unwrap();
            // No window is held by anyone here, so the memory may go at once.
            drop(map.unmap(GuestAddress(0x2000), PAGE).unwrap());
            assert!(map.generation() >= before + 2);
            changes += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_view_is_one_moment() {
    let mappings = Mappings::new();
    let map = MemoryMap::new(mappings.clone());
    let file = memfd(1);
    map.map(region(0x1000, 1, &file, 0)).unwrap();
    let view = map.now();
    drop(map.unmap_all());
    map.map(region(0x2000, 1, &file, 0)).unwrap();
    view.store_u32(GuestAddress(0x1000), 6).unwrap();
    assert_eq!(view.load_u64(GuestAddress(0x2000)), Err(MemoryError::NotMapped(0x2000)));
    assert_eq!(map.load_u64(GuestAddress(0x2000)), Ok(6));
    drop(map);
    assert_eq!(mappings.len(), 1, "what a view shows stays mapped");
    drop(view);
    assert!(mappings.is_empty());
}

#[test]
fn a_kept_view_is_taken_again_until_the_map_changes() {
    let mappings = Mappings::new();
    let (map, other) = (MemoryMap::new(mappings.clone()), MemoryMap::new(mappings.clone()));
    let (file, others_file) = (memfd(1), memfd(1));
    map.map(region(0x1000, 1, &file, 0)).unwrap();
    other.map(region(0x1000, 1, &others_file, 0)).unwrap();
    other.store_u32(GuestAddress(0x1000), 8).unwrap();
    let mut kept = KeptView::default();
    let first: *const MemoryView = map.view(&mut kept);
    assert_eq!(std::ptr::from_ref(map.view(&mut kept)), first);
    assert_eq!(other.view(&mut kept).load_u64(GuestAddress(0x1000)), Ok(8), "not the first map's");
    assert_eq!(map.view(&mut kept).load_u64(GuestAddress(0x1000)), Ok(0));
    drop(map.unmap_all());
    assert_eq!(mappings.len(), 2, "what is kept stays mapped");
    assert_eq!(map.view(&mut kept).load_u64(GuestAddress(0x1000)), Err(MemoryError::NotMapped(0x1000)));
    assert_eq!(mappings.len(), 1);
    let _ = other.view(&mut kept);
    drop(other);
    assert!(!mappings.is_empty());
    drop(kept);
    assert!(mappings.is_empty());
}

/// The naive model: what each guest page shows, and the files as plain bytes.
#[derive(Default)]
struct Model {
    regions: Vec<(u64, u64, usize, u64, bool, bool)>,
    files: Vec<Vec<u8>>,
}

const FILES: usize = 2;
const FILE_PAGES: u64 = 4;
const GUEST_PAGES: u64 = 10;

impl Model {
    /// File and offset of a guest byte, or why not.
    fn at(&self, gpa: u64, read: bool, write: bool) -> Result<(usize, usize), MemoryError> {
        let inside = |r: &&(u64, u64, usize, u64, bool, bool)| gpa >= r.0 && gpa - r.0 < r.1;
        let &(start, _, file, offset, may_read, may_write) =
            self.regions.iter().find(inside).ok_or(MemoryError::NotMapped(gpa))?;
        if (read && !may_read) || (write && !may_write) {
            return Err(MemoryError::Forbidden(gpa));
        }
        if file == FILES {
            return Err(MemoryError::Unreachable(gpa));
        }
        Ok((file, usize::try_from(offset + gpa - start).unwrap()))
    }

    fn read(&self, gpa: u64, len: u64) -> Result<Vec<u8>, MemoryError> {
        (gpa..gpa + len).map(|gpa| self.at(gpa, true, false).map(|(file, at)| self.files[file][at])).collect()
    }

    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        for (gpa, byte) in (gpa..).zip(bytes) {
            let (file, at) = self.at(gpa, false, true)?;
            self.files[file][at] = *byte;
        }
        Ok(())
    }

    fn overlaps(&self, gpa: u64, size: u64) -> bool {
        self.regions.iter().any(|r| r.0 < gpa + size && gpa < r.0 + r.1)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Map { page: u64, pages: u64, file: usize, offset: u64, read: bool, write: bool },
    Unmap { page: u64, pages: u64 },
    Read { gpa: u64, len: u64 },
    Write { gpa: u64, bytes: Vec<u8> },
    Load { gpa: u64 },
    Store { gpa: u64, value: u32 },
}

fn op() -> impl Strategy<Value = Op> {
    let gpa = 0..GUEST_PAGES * PAGE;
    prop_oneof![
        4 => (0..GUEST_PAGES, 1..4_u64, 0..=FILES, 0..FILE_PAGES, prop::bool::weighted(0.9), prop::bool::weighted(0.9))
            .prop_map(|(page, pages, file, offset, read, write)| Op::Map { page, pages, file, offset, read, write }),
        2 => (0..GUEST_PAGES, 1..6_u64).prop_map(|(page, pages)| Op::Unmap { page, pages }),
        4 => (gpa.clone(), 0..3 * PAGE).prop_map(|(gpa, len)| Op::Read { gpa, len }),
        4 => (gpa.clone(), prop::collection::vec(any::<u8>(), 0..64), 0..40_usize).prop_map(|(gpa, bytes, times)| {
            Op::Write { gpa, bytes: bytes.repeat(times) }
        }),
        1 => gpa.clone().prop_map(|gpa| Op::Load { gpa: gpa & !7 }),
        1 => (gpa, any::<u32>()).prop_map(|(gpa, value)| Op::Store { gpa: gpa & !3, value }),
    ]
}

proptest! {
    #[test]
    fn agrees_with_the_naive_model(ops in prop::collection::vec(op(), 1..60)) {
        let files: Vec<File> = (0..FILES).map(|_| memfd(FILE_PAGES)).collect();
        let map = MemoryMap::new(Mappings::new());
        let empty = vec![0; usize::try_from(FILE_PAGES * PAGE).unwrap()];
        let mut model = Model { files: vec![empty; FILES], ..Model::default() };
        for op in ops {
            match op {
                Op::Map { page, pages, file, offset, read, write } => {
                    let (gpa, size) = (page * PAGE, pages * PAGE);
                    let backing = files.get(file).and_then(fd);
                    let fits = file == FILES || offset + pages <= FILE_PAGES;
                    let done = map.map(Region {
                        gpa: GuestAddress(gpa), size, offset: offset * PAGE, read, write, fd: backing,
                    });
                    if model.overlaps(gpa, size) {
                        prop_assert!(matches!(done, Err(MapError::Overlap(_))));
                    } else if !fits {
                        let end = (offset + pages) * PAGE;
                        let beyond = MappingError::BeyondFile { end, len: FILE_PAGES * PAGE };
                        prop_assert_eq!(done, Err(MapError::Mapping(beyond)));
                    } else {
                        prop_assert_eq!(done, Ok(()));
                        model.regions.push((gpa, size, file, offset * PAGE, read, write));
                    }
                }
                Op::Unmap { page, pages } => {
                    let (gpa, size) = (page * PAGE, pages * PAGE);
                    let inside = |r: &(u64, u64, usize, u64, bool, bool)| r.0 >= gpa && r.0 + r.1 <= gpa + size;
                    let whole: u64 = model.regions.iter().filter(|r| inside(r)).map(|r| r.1).sum();
                    let cut = model.regions.iter().any(|r| r.0 < gpa + size && gpa < r.0 + r.1 && !inside(r));
                    match map.unmap(GuestAddress(gpa), size) {
                        Ok(retired) => {
                            prop_assert!(!cut && whole > 0);
                            prop_assert_eq!(retired.bytes(), whole);
                            model.regions.retain(|r| !inside(r));
                        }
                        Err(UnmapError::Splits(_)) => prop_assert!(cut),
                        Err(error) => {
                            prop_assert_eq!(error, UnmapError::NotMapped);
                            prop_assert!(!cut && whole == 0);
                        }
                    }
                }
                Op::Read { gpa, len } => {
                    let mut buf = vec![0; usize::try_from(len).unwrap()];
                    let seen = map.read(GuestAddress(gpa), &mut buf).map(|()| buf);
                    prop_assert_eq!(seen, model.read(gpa, len));
                }
                Op::Write { gpa, bytes } => {
                    prop_assert_eq!(map.write(GuestAddress(gpa), &bytes), model.write(gpa, &bytes));
                }
                Op::Load { gpa } => {
                    let expected = model.read(gpa, 8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
                    prop_assert_eq!(map.load_u64(GuestAddress(gpa)), expected);
                }
                Op::Store { gpa, value } => {
                    let expected = model.write(gpa, &value.to_le_bytes());
                    prop_assert_eq!(map.store_u32(GuestAddress(gpa), value), expected);
                }
            }
            let window = map.window(GuestAddress(3 * PAGE + 5)).map(|w| (w.gpa.0, w.len, w.readable, w.writable));
            let inside = model.regions.iter().find(|r| (r.0..r.0 + r.1).contains(&(3 * PAGE + 5)));
            prop_assert_eq!(window, match inside {
                None => Err(MemoryError::NotMapped(3 * PAGE + 5)),
                Some(r) if r.2 == FILES => Err(MemoryError::Unreachable(3 * PAGE + 5)),
                Some(r) => Ok((r.0, r.1, r.4, r.5)),
            });
        }
        // What was written is in the files, and nothing else is.
        for (file, expected) in files.iter().zip(&model.files) {
            let mut bytes = vec![0; expected.len()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            prop_assert_eq!(&bytes, expected);
        }
    }
}
