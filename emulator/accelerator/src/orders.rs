//! What the accelerator mails to its engines: the device's part of a mailbox.
use svadev_endpoint::{Mail, Obligation};
use svadev_fabric::Pasid;
use svadev_mirror::ControlBlock;
use svadev_spec::device::{ABORT_SLOTS, MAX_QUEUES};

use crate::queue_config::QueueConfig;

/// Commands that may be under way at once: number 0 is that of COMMAND, number 1 + n that of abort slot n.
pub(crate) const COMMANDS: usize = 1 + ABORT_SLOTS as usize;

/// What is over once every engine has acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// A function reset: no longer busy, `FunctionPorts::reset_done`.
    Reset,
    /// CONTROL.enable 1 → 0: no longer busy.
    Disable,
    /// The command with this number, below [`COMMANDS`]: no longer busy.
    Command(usize),
    /// MIRROR_CONTROL.enable 1 → 0: the mirror is no longer busy.
    Mirror,
}

/// Changes of the mirror that an engine has not taken: first off, then on.
#[derive(Debug, Default)]
pub(crate) struct MirrorChange {
    /// Unacknowledged MIRROR_CONTROL.enable 1 → 0.
    pub(crate) offs: Vec<Obligation<Done>>,
    /// It was turned on after that, with this vector.
    pub(crate) on: Option<(ControlBlock, Option<u16>)>,
}

/// Changes of one queue that its engine has not taken: first the disable, then the enable.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QueueChange {
    /// 1 → 0 was written.
    pub(crate) disable: bool,
    /// 0 → 1 was written, after that.
    pub(crate) enable: Option<QueueConfig>,
}

/// A command of the COMMAND register (`svadev_spec::device::command`) or of an abort slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// ABORT_PASID.
    Abort(Pasid),
    /// DRAIN_PASID.
    Drain(Pasid),
}

/// What one engine is told to do.
#[derive(Debug)]
pub(crate) struct Orders {
    /// Unacknowledged resets, and what they ended. Everything else in the mailbox is newer: [`reset`](Self::reset)
    /// clears what came before.
    pub(crate) resets: Vec<Obligation<Done>>,
    /// Unacknowledged CONTROL.enable 1 → 0, whose queue changes are in `queues`.
    pub(crate) disables: Vec<Obligation<Done>>,
    /// By queue number; this engine's queues only are ever set.
    pub(crate) queues: Box<[QueueChange]>,
    /// Some element of `queues` is set.
    pub(crate) queues_changed: bool,
    /// Bit n: the wake page of queue n was written.
    pub(crate) rung: [u64; MAX_QUEUES as usize / 64],
    /// Every doorbell is to be looked at: the function was enabled.
    pub(crate) rung_all: bool,
    /// New commands, by number.
    pub(crate) commands: [Option<(Command, Obligation<Done>)>; COMMANDS],
    /// Some element of `commands` is set.
    pub(crate) commanded: bool,
    /// The mirror was turned off or on.
    pub(crate) mirror: MirrorChange,
    /// MIRROR_KICK was written: there may be responses.
    pub(crate) kicked: bool,
}

impl Orders {
    /// None, for queues numbered below `queues`.
    pub(crate) fn new(queues: usize) -> Self {
        Self {
            resets: Vec::with_capacity(8 + COMMANDS),
            disables: Vec::with_capacity(4),
            queues: vec![QueueChange::default(); queues].into(),
            queues_changed: false,
            rung: [0; MAX_QUEUES as usize / 64],
            rung_all: false,
            commands: [const { None }; COMMANDS],
            commanded: false,
            mirror: MirrorChange::default(),
            kicked: false,
        }
    }

    /// MIRROR_CONTROL.enable 1 → 0 outdates the 0 → 1 that came before it.
    pub(crate) fn mirror_off(&mut self, obligation: Obligation<Done>) {
        self.mirror.on = None;
        self.mirror.offs.push(obligation);
    }

    /// The wake page of a queue was written.
    pub(crate) fn ring(&mut self, queue: usize) {
        self.rung[queue / 64] |= 1 << (queue % 64);
    }

    /// A command was written, while none with its number was busy.
    pub(crate) fn command(&mut self, number: usize, command: Command, obligation: Obligation<Done>) {
        self.commands[number] = Some((command, obligation));
        self.commanded = true;
    }

    /// CONTROL.enable 1 → 0 disables every queue, and outdates the enables that came before it. Enables that come after
    /// it hold.
    pub(crate) fn disable_all(&mut self, obligation: Obligation<Done>) {
        self.queues.fill(QueueChange { disable: true, enable: None });
        self.queues_changed = true;
        self.disables.push(obligation);
    }

    /// A reset outdates what came before it: queue changes, and disables and commands, which end with it.
    pub(crate) fn reset(&mut self, obligation: Obligation<Done>) {
        self.queues.fill(QueueChange::default());
        self.queues_changed = false;
        self.resets.append(&mut self.disables);
        if std::mem::take(&mut self.commanded) {
            self.resets.extend(self.commands.iter_mut().filter_map(Option::take).map(|(_, obligation)| obligation));
        }
        self.mirror.on = None;
        self.resets.append(&mut self.mirror.offs);
        self.resets.push(obligation);
    }
}

impl Mail for Orders {
    type Answer = Done;

    fn is_empty(&self) -> bool {
        self.resets.is_empty()
            && self.disables.is_empty()
            && !self.queues_changed
            && self.rung == [0; MAX_QUEUES as usize / 64]
            && !self.rung_all
            && !self.commanded
            && self.mirror.offs.is_empty()
            && self.mirror.on.is_none()
            && !self.kicked
    }
}

impl Drop for Orders {
    /// The engine and the function are gone: whoever waited is gone with them.
    fn drop(&mut self) {
        let commands = self.commands.iter_mut().filter_map(Option::take).map(|(_, obligation)| obligation);
        let held = self.resets.drain(..).chain(self.disables.drain(..)).chain(self.mirror.offs.drain(..));
        for obligation in held.chain(commands) {
            let _nobody_hears = obligation.acknowledge();
        }
    }
}
