//! A function's state as a plain value, to be saved and restored.
use svadev_endpoint::{Answer, Obligation, Platform, PrgState};
use svadev_pci::ConfigState;
use svadev_spec::device::{ABORT_SLOTS, CommandStatus, DOORBELL_STRIDE, QueueStatus, Status};

use crate::engine::{Engine, EngineState};
use crate::function::{Function, QueueBank};
use crate::mirror_registers::MirrorBank;
use crate::orders::{COMMANDS, Done};

/// Everything that a guest can see of a function, and the work that it has under way.
///
/// Translations are not in it: a function may forget them at any time. Pending bits and eventfds belong to whoever
/// delivers the interrupts. Times are on the clock of [`Engine::run`], which has to go on.
#[derive(Clone, Debug)]
pub struct FunctionState {
    config: ConfigState,
    queues: Box<[QueueBank]>,
    command_high: u32,
    msi_x: Box<[u8]>,
    abort_pasids: [u32; ABORT_SLOTS as usize],
    /// STATUS; whether it is busy follows from the engines.
    status: Status,
    /// How each command stands, by number; whether it is busy follows from the engines.
    commands: Box<[CommandStatus]>,
    mirror: MirrorBank,
    /// QUEUE_STATUS and QUEUE_FAULT_ADDRESS of each queue.
    faces: Box<[(QueueStatus, u64)]>,
    /// The words of the doorbell pages.
    doorbells: Box<[u32]>,
    prg: PrgState,
    engines: Box<[EngineState]>,
}

impl Function {
    /// Pauses the engines: they do what they were told, end every wait for a page, and hold no translation. Until they
    /// run again, an invalidation or a change of the memory map is done at once. Pause every function of a machine
    /// before the first one is saved. `now_ns` is as for [`Engine::run`].
    pub fn pause<P: Platform>(&self, engines: &mut [Engine<P>], now_ns: u64) {
        engines.iter_mut().for_each(|engine| engine.pause(now_ns));
    }

    /// The state of a function whose engines are paused.
    pub fn save<P: Platform>(&self, engines: &[Engine<P>]) -> FunctionState {
        // Taken apart whole: a new field must be given a line here.
        let Self { shared, config, queues, command_high, abort_pasids, msi_x, mirror } = self;
        let words = (0..queues.len()).flat_map(|page| (0..DOORBELL_STRIDE).step_by(4).map(move |at| (page, at)));
        FunctionState {
            config: config.save(),
            queues: queues.clone(),
            command_high: *command_high,
            msi_x: msi_x.entries().into(),
            abort_pasids: *abort_pasids,
            status: shared.status(),
            commands: (0..COMMANDS).map(|number| shared.command_status(number)).collect(),
            mirror: mirror.save(shared),
            faces: (0..queues.len()).map(|n| (shared.queue(n).status(), shared.queue(n).fault_address())).collect(),
            doorbells: words.map(|(page, at)| shared.doorbells().load(page, at)).collect(),
            prg: shared.endpoint().prg().save(),
            engines: engines.iter().map(Engine::save).collect(),
        }
    }

    /// Restores a state that was saved from a function of the same settings. This function and its engines must be new.
    /// A disable or a command that was under way continues.
    pub fn restore<P: Platform>(&mut self, engines: &mut [Engine<P>], state: &FunctionState) {
        let FunctionState {
            config,
            queues,
            command_high,
            msi_x,
            abort_pasids,
            status,
            commands,
            mirror,
            faces,
            doorbells,
            prg,
            engines: engine_states,
        } = state;
        assert_eq!(engines.len(), engine_states.len(), "the settings are the same");
        self.config.restore(config);
        self.queues.clone_from(queues);
        self.command_high = *command_high;
        self.msi_x.restore(msi_x);
        self.mirror.restore(&self.shared, mirror);
        self.abort_pasids = *abort_pasids;
        self.shared.restore(*status, commands);
        for (n, &(status, fault_address)) in faces.iter().enumerate() {
            self.shared.queue(n).set(status, fault_address);
        }
        let words = (0..queues.len()).flat_map(|page| (0..DOORBELL_STRIDE).step_by(4).map(move |at| (page, at)));
        for ((page, at), &word) in words.zip(doorbells) {
            self.shared.doorbells().store(page, at, word);
        }
        self.shared.endpoint().prg().restore(prg);
        self.apply_config();
        let disable = self.shared.go_on(Done::Disable, engine_states.iter().any(|engine| engine.disabling.is_some()));
        let commands: Vec<_> = (0..COMMANDS)
            .map(|number| {
                let under_way = engine_states.iter().any(|engine| engine.commands[number].is_some());
                self.shared.go_on(Done::Command(number), under_way)
            })
            .collect();
        for (engine, state) in engines.iter_mut().zip(engine_states) {
            let share =
                |own: &Option<Obligation<Done>>, owed: bool| own.as_ref().filter(|_| owed).map(Obligation::share);
            let of_command = |number: usize| share(&commands[number], state.commands[number].is_some());
            engine.restore(state, share(&disable, state.disabling.is_some()), of_command);
        }
        for own in commands.into_iter().chain([disable]).flatten() {
            if let Some(Answer::Device(done)) = own.acknowledge() {
                self.shared.give(done);
            }
        }
    }
}
