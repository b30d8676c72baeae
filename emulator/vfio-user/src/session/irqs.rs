//! DEVICE_SET_IRQS: every combination of action and data (*vfio-user* "VFIO_USER_DEVICE_SET_IRQS").
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use svadev_spec::vfio_user::{IrqSet, IrqSetFlags};

use super::fixed;
use crate::device::{Action, Data, Device, IrqInfo, SetIrqs};

pub(super) fn set(device: &mut dyn Device, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(), Errno> {
    let (set, data) = fixed::<IrqSet>(payload)?;
    if (set.argsz as usize) < size_of::<IrqSet>() || set.index >= device.device_info().irqs {
        return Err(Errno::EINVAL);
    }
    let irq = device.irq(set.index);
    let flags = IrqSetFlags::from_bits(set.flags).ok_or(Errno::EINVAL)?;
    let action = action(flags)?;
    let data_flags = flags & (IrqSetFlags::DATA_NONE | IrqSetFlags::DATA_BOOL | IrqSetFlags::DATA_EVENTFD);
    if set.count == 0 {
        // Only this form has a meaning: disable the whole type. Of a type without interrupts that is already true.
        if data_flags != IrqSetFlags::DATA_NONE || action != Action::Trigger || set.start != 0 {
            return Err(Errno::EINVAL);
        }
        if irq.count == 0 {
            return Ok(());
        }
    }
    check(&set, action, &irq)?;
    let count = set.count as usize;
    let data = match data_flags {
        IrqSetFlags::DATA_NONE => Data::None,
        IrqSetFlags::DATA_BOOL => Data::Bool(data.get(..count).ok_or(Errno::EINVAL)?),
        IrqSetFlags::DATA_EVENTFD if irq.eventfd => Data::EventFd(eventfds(fds, count)?),
        // None of them, several of them, or eventfds for what has none.
        _ => return Err(Errno::EINVAL),
    };
    device.set_irqs(SetIrqs { index: set.index, start: set.start, count: set.count, action, data })
}

/// Exactly one action.
fn action(flags: IrqSetFlags) -> Result<Action, Errno> {
    match flags & (IrqSetFlags::ACTION_MASK | IrqSetFlags::ACTION_UNMASK | IrqSetFlags::ACTION_TRIGGER) {
        IrqSetFlags::ACTION_MASK => Ok(Action::Mask),
        IrqSetFlags::ACTION_UNMASK => Ok(Action::Unmask),
        IrqSetFlags::ACTION_TRIGGER => Ok(Action::Trigger),
        _ => Err(Errno::EINVAL),
    }
}

/// The range lies inside the type, and the type has the action.
fn check(set: &IrqSet, action: Action, irq: &IrqInfo) -> Result<(), Errno> {
    let inside = set.start.checked_add(set.count).is_some_and(|end| end <= irq.count);
    if !inside || (action != Action::Trigger && !irq.maskable) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// One eventfd for each interrupt, or none at all, which takes all of them away. A message carries no -1, so with any
/// other number nobody knows which interrupt is meant. `count` is at most the type's count here, which bounds the list.
fn eventfds(fds: Vec<OwnedFd>, count: usize) -> Result<Vec<Option<OwnedFd>>, Errno> {
    if fds.len() != count && !fds.is_empty() {
        return Err(Errno::EINVAL);
    }
    let mut eventfds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
    eventfds.resize_with(count, || None);
    Ok(eventfds)
}
