//! Operand spaces of a kernel queue, device memory, and BARs that come back as regions without a file.
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use svadev_memory::DeviceMemory;
use svadev_mirror::testing::Driver;
use svadev_spec::device::{
    BAR_DEVICE_MEMORY, Code, Descriptor, DescriptorFlags, OperandSpaces, ScatterEntry, opcode, operand_space,
};
use svadev_spec::mirror::{ASID_BIT, TableEntry, device_address, regs as mirror};
use svadev_spec::pcie::header;
use zerocopy::IntoBytes;

use super::world::*;

const BYTES: u64 = 1 << 20;
const RINGS: u64 = 0x10_0000;

struct Board {
    w: World,
    files: [File; 2],
}

impl Board {
    /// Function 0 of a device whose second function has memory, too.
    fn new() -> Self {
        let mut w = World::with(|settings| settings.device_memory = BYTES);
        let files = [0, 1].map(|_| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(BYTES).unwrap();
            file
        });
        let parts = files.each_ref().map(|file| Some((file.try_clone().unwrap().into(), BYTES)));
        w.shared().set_device_memory(Arc::new(DeviceMemory::new(parts).unwrap()));
        w.enable(0, 6, None);
        Self { w, files }
    }

    fn file(&self, number: usize, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.files[number].read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

fn spaces(src: u8, dst: u8) -> OperandSpaces {
    OperandSpaces::new().with_src(src).with_dst(dst)
}

fn copy(src: u64, dst: u64, length: u64, spaces: OperandSpaces) -> Descriptor {
    Descriptor { opcode: opcode::COPY, cookie: 1, src, dst, length, spaces, ..Default::default() }
}

#[test]
fn a_kernel_queue_copies_between_processes_dma_and_device_memory() {
    use operand_space::{DEVICE_MEMORY, DMA, VIRTUAL};
    let mut b = Board::new();
    let process = pasid(5);
    b.w.map(Some(process), 0x5000_0000, 0x100_0000, 0x2000);
    b.w.write(0x100_0000, &noise(1, 0x2000));
    let own = |d| for_process(process, d);
    let there = own(copy(0x5000_0000, device_address(1, 0x800), 0x2000, spaces(VIRTUAL, DEVICE_MEMORY)));
    assert_eq!(code(&b.w.run_one(0, there)), Code::Success);
    assert_eq!(b.file(1, 0x800, 0x2000), noise(1, 0x2000));
    // From one function's memory to the other's, and to an address of the driver's.
    let across = copy(device_address(1, 0x800), device_address(0, 0), 0x1000, spaces(DEVICE_MEMORY, DEVICE_MEMORY));
    assert_eq!(code(&b.w.run_one(0, across)), Code::Success);
    let dma = RINGS + 0xf000;
    let back = own(copy(device_address(0, 0), dma, 0x1000, spaces(DEVICE_MEMORY, DMA)));
    assert_eq!(code(&b.w.run_one(0, back)), Code::Success);
    assert_eq!(b.w.read(dma, 0x1000), noise(1, 0x1000));
    let fill = Descriptor {
        opcode: opcode::FILL,
        src: 0,
        spaces: spaces(VIRTUAL, DEVICE_MEMORY),
        operand: u64::MAX,
        ..copy(0, device_address(0, 0), 64, spaces(0, 0))
    };
    assert_eq!(code(&b.w.run_one(0, fill)), Code::Success);
    assert_eq!(b.file(0, 0, 65)[63..], [0xff, noise(1, 65)[64]]);
}

#[test]
fn lists_have_a_space_of_their_own() {
    let mut b = Board::new();
    b.w.write(RINGS + 0xe000, &noise(2, 0x1000));
    let list = [
        ScatterEntry { address: device_address(0, 0x4000), length: 0x800 },
        ScatterEntry { address: device_address(1, 0), length: 0x800 },
    ];
    (&b.files[0]).seek(SeekFrom::Start(0x100)).unwrap();
    (&b.files[0]).write_all(list.as_bytes()).unwrap();
    let spaces = OperandSpaces::new().with_dst(2).with_list(2);
    let descriptor = Descriptor {
        flags: DescriptorFlags::DST_LIST.bits(),
        dst_entries: 2,
        ..copy(RINGS + 0xe000, device_address(0, 0x100), 0x1000, spaces)
    };
    assert_eq!(code(&b.w.run_one(0, descriptor)), Code::Success);
    assert_eq!([b.file(0, 0x4000, 0x800), b.file(1, 0, 0x800)].concat(), noise(2, 0x1000));
}

#[test]
fn addresses_beyond_device_memory_are_memory_errors() {
    let mut b = Board::new();
    for address in [device_address(0, BYTES), device_address(2, 0), 1 << 60, u64::MAX - 63] {
        let done = b.w.run_one(0, copy(address, RINGS + 0xf000, 64, spaces(2, 1)));
        assert_eq!((code(&done), done.result), (Code::MemoryError, address), "{address:x}");
    }
    let end = b.w.run_one(0, copy(device_address(0, BYTES - 64), RINGS + 0xf000, 128, spaces(2, 1)));
    assert_eq!((code(&end), end.bytes_done, end.result), (Code::MemoryError, 64, device_address(0, BYTES)));
    // A device without memory.
    let mut w = World::new();
    w.enable(0, 6, None);
    assert_eq!(code(&w.run_one(0, copy(0, RINGS + 0xf000, 64, spaces(2, 1)))), Code::MemoryError);
    assert_eq!(w.function.bar_size(BAR_DEVICE_MEMORY), 0);
}

#[test]
fn a_page_of_the_mirror_may_be_device_memory() {
    let mut b = Board::new();
    let asid = ASID_BIT | 2;
    let mut driver = Driver::new(Arc::clone(&b.w.memory), 0x200_0000, 1, 0x210_0000, 0x220_0000).unwrap();
    driver.create(asid, false, 0).unwrap();
    b.w.write64(mirror::BASE, 0x200_0000);
    b.w.write32(mirror::CONTROL, 1);
    assert_eq!((b.w.read64(mirror::DEVMEM_SIZE), b.w.read32(mirror::DEVMEM_ID)), (BYTES, 0));
    let page = |number, offset| TableEntry::new().with_frame(device_address(number, offset) >> 12).with_device(true);
    driver.map(asid, 0x1000, 12, page(1, 0x3000)).unwrap();
    driver.map(asid, 0x2000, 12, page(0, 0x5000).with_writable(true)).unwrap();
    driver.map(asid, 0x3000, 12, page(0, BYTES)).unwrap();
    b.files[1].write_all_at(&noise(3, 0x1000), 0x3000).unwrap();
    assert_eq!(
        code(&b.w.run_one(0, for_process(pasid(asid), copy(0x1000, 0x2000, 0x1000, spaces(0, 0))))),
        Code::Success
    );
    assert_eq!(b.file(0, 0x5000, 0x1000), noise(3, 0x1000));
    let beyond = b.w.run_one(0, for_process(pasid(asid), copy(0x3000, 0x2000, 64, spaces(0, 0))));
    assert_eq!((code(&beyond), beyond.result), (Code::MemoryError, 0x3000));
}

#[test]
fn our_own_bar_is_found_where_the_vmm_has_no_file() {
    let mut b = Board::new();
    let bar = 0xc0_0000_0000u64;
    // The mock's memory ends before it. What lies beyond has no file, as a VMM says of BARs.
    b.w.memory.bars_from.store(RAM, std::sync::atomic::Ordering::Relaxed);
    let place = |w: &mut World, address: u64| {
        let at = u64::from(header::BAR0) + 4 * u64::from(BAR_DEVICE_MEMORY);
        let _ = w.function.config_write(at, &address.to_le_bytes());
    };
    place(&mut b.w, bar);
    b.w.map(Some(pasid(5)), 0x5000_0000, bar + 0x6000, 0x1000);
    b.w.map(Some(pasid(5)), 0x6000_0000, 0x100_0000, 0x1000);
    b.files[0].write_all_at(&noise(4, 0x1000), 0x6000).unwrap();
    let read = for_process(pasid(5), copy(0x5000_0000, 0x6000_0000, 0x1000, spaces(0, 0)));
    assert_eq!(code(&b.w.run_one(0, read)), Code::Success);
    assert_eq!(b.w.read(0x100_0000, 0x1000), noise(4, 0x1000));
    // The BAR moves: a VMM says so with changes of the map, which drop translations.
    place(&mut b.w, bar + BYTES);
    let _pending = b.w.shared().memory_changed(1);
    assert_eq!(code(&b.w.run_one(0, read)), Code::MemoryError);
}
