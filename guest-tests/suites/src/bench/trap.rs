//! What an access costs that the VMM hands to the device: a load waits for the answer, a store need not.
#![allow(unsafe_code, reason = "loads and stores of device pages")]
use svadev_guest::{Buffer, UserQueue};
use svadev_spec::device::{ID_MAGIC, regs};

use super::latency::sampled;
use super::queue::polled;
use super::{Bench, Row, Suite};
use crate::harness::{During, Verdict};
use crate::{check, fail};

pub(super) const SUITE: Suite = Suite { name: "trap", on_request: false, cases: |_| CASES.len(), run };

const CASES: [&str; 2] = ["register read", "wake page store"];

/// Where loads trap.
enum Source<'q, 'd> {
    /// The register BAR, and the offset of a register in it that says what it is.
    Registers(Buffer),
    /// A queue's wake page, which reads zero. It takes the same way as a register.
    WakePage(&'q UserQueue<'d>),
}

impl Source<'_, '_> {
    fn read(&self) -> u32 {
        let address = match self {
            Self::Registers(page) => page.at(usize::try_from(regs::ID).expect("an offset in a page")),
            Self::WakePage(queue) => queue.wake_address(),
        };
        // SAFETY: a word of a page of the device, mapped as long as what it was taken from; any value may be there.
        unsafe { pointer(address).read_volatile() }
    }

    fn expected(&self) -> u32 {
        match self {
            Self::Registers(_) => ID_MAGIC,
            Self::WakePage(_) => 0,
        }
    }
}

fn pointer(address: u64) -> *mut u32 {
    std::ptr::with_exposed_provenance_mut(usize::try_from(address).expect("addresses are 64 bits"))
}

fn run(bench: &mut Bench<'_>) -> Verdict {
    let time = bench.setup.per_case;
    let device = bench.setup.bound()?;
    let queue = UserQueue::create(&device, polled(1))?;

    bench.case(CASES[0])?;
    let path = format!("/sys/bus/pci/devices/{}/resource0", device.query()?.pci_address);
    let file = std::fs::File::options().read(true).write(true).open(&path).during(&path)?;
    // A kernel that keeps user space out of regions that a driver uses (CONFIG_IO_STRICT_DEVMEM) refuses to map.
    let (source, note) = match Buffer::file(&file, 0, 4096, true) {
        Ok(page) => (Source::Registers(page), "a load from the mapped register BAR"),
        Err(_) => {
            (Source::WakePage(&queue), "a load from a wake page: the kernel keeps programs out of the register BAR")
        }
    };
    bench.out.counters("trap register read: begin")?;
    let samples = sampled(time, || {
        let value = source.read();
        check!(value == source.expected(), "{note}: expected {:#x}, actual {value:#x}", source.expected());
        Ok(())
    })?;
    bench.out.counters("trap register read: end")?;
    let Some(summary) = samples.summary() else { fail!("no register was read") };
    bench.row(&Row::median(CASES[0], summary, "us").goal("G5").note(note))?;

    bench.case(CASES[1])?;
    let samples = sampled(time, || {
        // SAFETY: the wake page is mapped as long as the queue; a store wakes an engine, at most in vain.
        unsafe { pointer(queue.wake_address()).write_volatile(1) };
        Ok(())
    })?;
    let Some(summary) = samples.summary() else { fail!("no store was made") };
    bench.row(&Row::median(CASES[1], summary, "us").note("the store need not wait for the device"))
}
