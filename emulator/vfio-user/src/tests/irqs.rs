//! DEVICE_SET_IRQS, every form.
use nix::errno::Errno;
use svadev_spec::vfio_user::{IrqSet, command, irq};
use zerocopy::IntoBytes;

use super::fake::{Call, IrqData};
use super::{Rig, eventfd, same_file};
use crate::Action;

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

fn set(
    rig: &mut Rig,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    data: &[u8],
    fds: usize,
) -> Result<Vec<Call>, Errno> {
    let set = IrqSet { argsz: 20 + u32::try_from(data.len()).unwrap(), flags, index, start, count };
    let fds = (0..fds).map(|_| eventfd()).collect();
    let (payload, _) = rig.call_fds(command::DEVICE_SET_IRQS, &[set.as_bytes(), data].concat(), fds)?;
    assert!(payload.is_empty(), "there is no reply payload");
    Ok(rig.device.take_calls())
}

#[test]
fn every_action_with_every_kind_of_data() {
    let mut rig = Rig::new();
    for (action_flag, action) in [(MASK, Action::Mask), (UNMASK, Action::Unmask), (TRIGGER, Action::Trigger)] {
        for (data_flag, data, fds, expected) in [
            (NONE, &[][..], 0, IrqData::None),
            (BOOL, &[1], 0, IrqData::Bool(vec![1])),
            (BOOL, &[0], 0, IrqData::Bool(vec![0])),
            (EVENTFD, &[], 1, IrqData::EventFd(vec![true])),
            (EVENTFD, &[], 0, IrqData::EventFd(vec![false])),
        ] {
            let calls = set(&mut rig, action_flag | data_flag, irq::INTX, 0, 1, data, fds).unwrap();
            assert_eq!(calls, [Call::Irqs(irq::INTX, 0, 1, action, expected)]);
        }
    }
}

#[test]
fn partial_ranges_and_missing_eventfds() {
    let mut rig = Rig::new();
    let call = |start, count, data| vec![Call::Irqs(irq::MSIX, start, count, Action::Trigger, data)];
    for (start, count, fds, expected) in
        [(0, 4, 4, vec![true; 4]), (1, 2, 2, vec![true; 2]), (3, 1, 1, vec![true]), (1, 3, 0, vec![false; 3])]
    {
        let calls = set(&mut rig, EVENTFD | TRIGGER, irq::MSIX, start, count, &[], fds).unwrap();
        assert_eq!(calls, call(start, count, IrqData::EventFd(expected)));
    }
    let calls = set(&mut rig, BOOL | TRIGGER, irq::MSIX, 1, 3, &[1, 0, 1], 0).unwrap();
    assert_eq!(calls, call(1, 3, IrqData::Bool(vec![1, 0, 1])));
    let calls = set(&mut rig, BOOL | TRIGGER, irq::MSIX, 1, 1, &[9, 9, 9], 0).unwrap();
    assert_eq!(calls, call(1, 1, IrqData::Bool(vec![9])), "what is beyond count is not data");
}

/// As rust-vmm's client does, whatever was negotiated.
#[test]
fn all_eventfds_may_come_in_one_message() {
    let mut rig = Rig::with_limits(crate::Limits { max_msg_fds: 1, ..crate::Limits::default() });
    let calls = set(&mut rig, EVENTFD | TRIGGER, irq::MSIX, 0, 4, &[], 4).unwrap();
    assert_eq!(calls, [Call::Irqs(irq::MSIX, 0, 4, Action::Trigger, IrqData::EventFd(vec![true; 4]))]);
    assert_eq!(set(&mut rig, EVENTFD | TRIGGER, irq::MSIX, 0, 4, &[], 5), Err(Errno::EINVAL));
}

#[test]
fn the_device_gets_the_very_eventfds_in_order() {
    let mut rig = Rig::new();
    let files = [super::memfd(1), super::memfd(2)];
    let fds = files.iter().map(|f| f.try_clone().unwrap()).collect();
    let set = IrqSet { argsz: 20, flags: EVENTFD | TRIGGER, index: irq::MSIX, start: 0, count: 2 };
    rig.call_fds(command::DEVICE_SET_IRQS, set.as_bytes(), fds).unwrap();
    assert!(same_file(&files[0], &rig.device.fds[0]) && same_file(&files[1], &rig.device.fds[1]));
}

#[test]
fn count_zero_disables_the_type_and_nothing_else() {
    let mut rig = Rig::new();
    let calls = set(&mut rig, NONE | TRIGGER, irq::MSIX, 0, 0, &[], 0).unwrap();
    assert_eq!(calls, [Call::Irqs(irq::MSIX, 0, 0, Action::Trigger, IrqData::None)]);
    assert_eq!(set(&mut rig, NONE | TRIGGER, irq::MSI, 0, 0, &[], 0), Ok(vec![]), "there are none to disable");
    for (flags, start) in [(NONE | TRIGGER, 1), (NONE | MASK, 0), (BOOL | TRIGGER, 0), (EVENTFD | TRIGGER, 0)] {
        assert_eq!(set(&mut rig, flags, irq::INTX, start, 0, &[], 0), Err(Errno::EINVAL));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut rig = Rig::new();
    for (why, flags, index, start, count, data, fds) in [
        ("no such type", NONE | TRIGGER, irq::COUNT, 0, 1, &[][..], 0),
        ("a type without interrupts", NONE | TRIGGER, irq::MSI, 0, 1, &[], 0),
        ("range too long", NONE | TRIGGER, irq::MSIX, 0, 5, &[], 0),
        ("range beyond the end", NONE | TRIGGER, irq::MSIX, 4, 1, &[], 0),
        ("range that wraps", NONE | TRIGGER, irq::MSIX, u32::MAX, 2, &[], 0),
        ("huge range", EVENTFD | TRIGGER, irq::MSIX, 0, u32::MAX, &[], 0),
        ("no data flag", TRIGGER, irq::MSIX, 0, 1, &[], 0),
        ("two data flags", NONE | BOOL | TRIGGER, irq::MSIX, 0, 1, &[1], 0),
        ("no action", NONE, irq::MSIX, 0, 1, &[], 0),
        ("two actions", NONE | MASK | TRIGGER, irq::INTX, 0, 1, &[], 0),
        ("unknown flag", NONE | TRIGGER | 64, irq::MSIX, 0, 1, &[], 0),
        ("masking what cannot be masked", NONE | MASK, irq::MSIX, 0, 1, &[], 0),
        ("eventfds for what has none", EVENTFD | TRIGGER, irq::ERR, 0, 1, &[], 1),
        ("more eventfds than interrupts", EVENTFD | TRIGGER, irq::MSIX, 0, 2, &[], 3),
        ("fewer eventfds than interrupts", EVENTFD | TRIGGER, irq::MSIX, 0, 3, &[], 2),
        ("fewer booleans than interrupts", BOOL | TRIGGER, irq::MSIX, 0, 3, &[1, 1], 0),
    ] {
        assert_eq!(set(&mut rig, flags, index, start, count, data, fds), Err(Errno::EINVAL), "{why}");
    }
    let short_argsz = IrqSet { argsz: 19, flags: NONE | TRIGGER, index: irq::MSIX, start: 0, count: 1 };
    assert_eq!(rig.call(command::DEVICE_SET_IRQS, short_argsz.as_bytes()), Err(Errno::EINVAL));
    assert_eq!(rig.call(command::DEVICE_SET_IRQS, &[0; 19]), Err(Errno::EINVAL));
    assert!(rig.device.calls.is_empty());
}

#[test]
fn the_devices_errno_is_the_reply() {
    let mut rig = Rig::new();
    rig.device.errors.push_back(Errno::EBUSY);
    assert_eq!(set(&mut rig, NONE | TRIGGER, irq::MSIX, 0, 1, &[], 0), Err(Errno::EBUSY));
}
