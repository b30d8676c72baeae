//! The mirror's registers: the socket thread's half of mirror mode.
use std::fmt;
use std::sync::Arc;

use svadev_memory::GuestMemory;
use svadev_mirror::{BadHeader, ControlBlock, Problem};
use svadev_spec::mirror::{Control, Status, Vector, error, regs};

use crate::halves::{half, set_half};
use crate::shared::FunctionShared;

/// The registers as software wrote them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MirrorBank {
    base: u64,
    vector: u32,
    enabled: bool,
    /// The first error. While the mirror is on, the engines know better.
    problem: Option<Problem>,
}

/// The mirror's registers, and the way to the header in guest memory.
pub(crate) struct MirrorRegisters {
    bank: MirrorBank,
    read_header: Box<dyn Fn(u64) -> Result<ControlBlock, BadHeader> + Send>,
}

impl fmt::Debug for MirrorRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bank.fmt(f)
    }
}

impl MirrorRegisters {
    /// Of a function with so many engines, which sees `memory`.
    pub(crate) fn new<M: GuestMemory + ?Sized + 'static>(memory: Arc<M>, engines: u8) -> Self {
        let read_header = Box::new(move |base| ControlBlock::read(&*memory, base, engines));
        Self { bank: MirrorBank::default(), read_header }
    }

    pub(crate) fn reset(&mut self) {
        self.bank = MirrorBank::default();
    }

    /// The registers, to be saved.
    pub(crate) fn save(&self, shared: &FunctionShared) -> MirrorBank {
        MirrorBank { problem: Some(shared.mirror().problem()), ..self.bank }
    }

    /// Goes on with saved registers.
    pub(crate) fn restore(&mut self, shared: &FunctionShared, bank: &MirrorBank) {
        shared.mirror().clear();
        shared.mirror().report(bank.problem.unwrap_or(Problem::NONE));
        shared.mirror().set_block(bank.enabled.then_some(bank.base));
        self.bank = *bank;
    }

    /// A register of the mirror; zero where there is none.
    pub(crate) fn read(&self, shared: &FunctionShared, offset: u64) -> u32 {
        let problem = shared.mirror().problem();
        match offset {
            o if o & !4 == regs::BASE => half(self.bank.base, o),
            regs::CONTROL => Control::new().with_enable(self.bank.enabled).into_bits(),
            regs::STATUS => Status::new()
                .with_enabled(self.bank.enabled)
                .with_busy(shared.mirror_busy())
                .with_error(problem.error)
                .into_bits(),
            regs::VECTOR => self.bank.vector,
            regs::ERROR_ASID => problem.asid,
            o if o & !4 == regs::ERROR_ADDRESS => half(problem.address, o),
            regs::DEVMEM_ID => shared.settings().number.into(),
            o if o & !4 == regs::DEVMEM_SIZE => half(shared.settings().device_memory, o),
            _ => 0,
        }
    }

    /// Writes a register of the mirror, if there is one.
    pub(crate) fn write(&mut self, shared: &FunctionShared, bus_master: bool, offset: u64, value: u32) {
        let idle = !self.bank.enabled && !shared.mirror_busy();
        match offset {
            o if o & !4 == regs::BASE && idle => set_half(&mut self.bank.base, o, value),
            regs::VECTOR if idle => self.bank.vector = value,
            regs::CONTROL => match (Control::from_bits(value).enable(), self.bank.enabled) {
                (true, false) if idle => self.turn_on(shared, bus_master),
                (false, true) => {
                    self.bank.enabled = false;
                    shared.mirror().set_block(None);
                    shared.mirror_off();
                }
                _ => {}
            },
            regs::KICK if self.bank.enabled => shared.kick(usize::try_from(value).unwrap_or(usize::MAX)),
            _ => {}
        }
    }

    fn turn_on(&mut self, shared: &FunctionShared, bus_master: bool) {
        shared.mirror().clear();
        let vector = Vector::from_bits(self.bank.vector);
        let clean = Vector::new().with_vector(vector.vector()).with_enable(vector.enable());
        let good = bus_master && vector == clean && vector.vector() < shared.settings().vectors;
        match (self.read_header)(self.bank.base) {
            Ok(block) if good => {
                self.bank.enabled = true;
                shared.mirror().set_block(Some(block.base()));
                shared.mirror_on(block, vector.enable().then(|| vector.vector().into()));
            }
            _ => shared.mirror().report(Problem { error: error::BAD_HEADER, asid: 0, address: self.bank.base }),
        }
    }
}
