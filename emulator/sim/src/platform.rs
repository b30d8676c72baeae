//! The platform of a simulated machine: plain memory, engines that the world wakes and runs, and mappings that record
//! when memory is given back.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use svadev_accelerator::DoorbellPages;
use svadev_fabric::Bdf;
use svadev_host::{Doorbells, GuestMaps, Platform, Wake};
use svadev_memory::Ram;
use svadev_vfio_user::{DmaMap, DmaUnmap};

use crate::checker::Checker;
use crate::log::Log;
use crate::mutant::Mutant;
use crate::watch::Watcher;

/// The platform of a world.
pub struct Simulated {
    ram: Arc<Ram>,
    log: Arc<Log>,
    mutant: Option<Mutant>,
    engines: BTreeMap<Bdf, Vec<Arc<EngineState>>>,
    maps: BTreeMap<Bdf, Arc<Maps>>,
}

impl Simulated {
    /// A platform whose machines all use `ram`.
    pub fn new(ram: Arc<Ram>, log: Arc<Log>, mutant: Option<Mutant>) -> Self {
        Self { ram, log, mutant, engines: BTreeMap::new(), maps: BTreeMap::new() }
    }

    /// The mappings of a function that was made.
    pub fn maps(&self, function: Bdf) -> &Arc<Maps> {
        &self.maps[&function]
    }
}

impl Platform for Simulated {
    type Memory = Ram;
    type Maps = FunctionMaps;
    type Waker = EngineState;
    type Tap = Watcher;

    fn memory(&mut self, function: Bdf) -> (Arc<Ram>, FunctionMaps) {
        let maps = Arc::new(Maps {
            mapped: Mutex::default(),
            retired: Arc::default(),
            engines: self.engines.get(&function).cloned().unwrap_or_default(),
            log: Arc::clone(&self.log),
            mutant: self.mutant,
        });
        self.maps.insert(function, Arc::clone(&maps));
        (Arc::clone(&self.ram), FunctionMaps(maps))
    }

    fn waker(&mut self, function: Bdf, _: usize) -> anyhow::Result<Arc<EngineState>> {
        let state = EngineState { loses_wakes: self.mutant == Some(Mutant::LoseWake), ..EngineState::default() };
        let state = Arc::new(state);
        self.engines.entry(function).or_default().push(Arc::clone(&state));
        Ok(state)
    }

    fn doorbells(&mut self, queues: u16) -> anyhow::Result<Doorbells> {
        Ok(Doorbells { pages: DoorbellPages::anonymous(queues.into()), file: None })
    }
}

/// Whether an engine's thread sleeps, was woken, and how often it ran.
#[derive(Debug, Default)]
pub struct EngineState {
    woken: AtomicBool,
    asleep: AtomicBool,
    /// It has run, and did not go to sleep since: it may use translations.
    online: AtomicBool,
    turns: AtomicU64,
    wakes: AtomicU64,
    /// A planted bug.
    loses_wakes: bool,
}

impl EngineState {
    /// Whether the engine was woken since the last call.
    pub fn take_wake(&self) -> bool {
        self.woken.swap(false, Ordering::Relaxed)
    }

    /// Whether the engine's thread sleeps.
    pub fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }

    /// The engine begins a turn.
    pub fn begin_turn(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        self.online.store(true, Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// The engine found nothing to do and went to sleep.
    pub fn sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        self.online.store(false, Ordering::Relaxed);
    }
}

impl Wake for EngineState {
    fn wake(&self) {
        let wakes = self.wakes.fetch_add(1, Ordering::Relaxed);
        if !(self.loses_wakes && wakes % 4 == 3) {
            self.woken.store(true, Ordering::Relaxed);
        }
    }
}

/// The mappings of one function.
#[derive(Debug)]
pub struct Maps {
    /// Size by address.
    mapped: Mutex<BTreeMap<u64, u64>>,
    /// Addresses of mappings that were retired and not given back yet.
    retired: Arc<Mutex<BTreeSet<u64>>>,
    engines: Vec<Arc<EngineState>>,
    log: Arc<Log>,
    mutant: Option<Mutant>,
}

/// Memory that left the map. Dropping it gives it back: then every engine that was online must have begun a turn since.
#[derive(Debug)]
pub struct Retired {
    mappings: Vec<(u64, u64)>,
    retired: Arc<Mutex<BTreeSet<u64>>>,
    /// Engines that were online, and their number of turns at that time.
    online: Vec<(Arc<EngineState>, u64)>,
    log: Arc<Log>,
}

impl Maps {
    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        lock(&self.mapped).is_empty()
    }

    /// Whether the memory that was mapped at `address` left the map and was given back.
    pub fn is_given_back(&self, address: u64) -> bool {
        !lock(&self.mapped).contains_key(&address) && !lock(&self.retired).contains(&address)
    }

    /// Whether memory that left the map was not given back yet.
    pub fn is_releasing(&self) -> bool {
        !lock(&self.retired).is_empty()
    }

    fn retire(&self, mappings: Vec<(u64, u64)>) -> Retired {
        lock(&self.retired).extend(mappings.iter().map(|mapping| mapping.0));
        let online = self.engines.iter().filter(|engine| engine.online.load(Ordering::Relaxed));
        let online = online.map(|engine| (Arc::clone(engine), engine.turns.load(Ordering::Relaxed))).collect();
        let retired = Retired { mappings, retired: Arc::clone(&self.retired), online, log: Arc::clone(&self.log) };
        if self.mutant == Some(Mutant::ReleaseEarly) {
            drop(retired);
            let retired = Arc::clone(&self.retired);
            return Retired { mappings: Vec::new(), retired, online: Vec::new(), log: Arc::clone(&self.log) };
        }
        retired
    }
}

/// Changes the mappings of one function, on behalf of its vfio-user server.
#[derive(Debug)]
pub struct FunctionMaps(Arc<Maps>);

impl GuestMaps for FunctionMaps {
    type Retired = Retired;

    fn map(&self, map: DmaMap) -> Result<(), Errno> {
        let mut mapped = lock(&self.0.mapped);
        let before = mapped.range(..map.gpa + map.size).next_back();
        if before.is_some_and(|(&gpa, &size)| gpa + size > map.gpa) {
            return Err(Errno::EEXIST);
        }
        mapped.insert(map.gpa, map.size);
        Ok(())
    }

    fn unmap(&self, range: DmaUnmap) -> Result<Retired, Errno> {
        let mut mapped = lock(&self.0.mapped);
        let mappings = match range {
            DmaUnmap::All => std::mem::take(&mut *mapped).into_iter().collect(),
            DmaUnmap::Range { address, size } if mapped.get(&address) == Some(&size) => {
                mapped.remove(&address);
                vec![(address, size)]
            }
            DmaUnmap::Range { .. } => return Err(Errno::ENOENT),
        };
        drop(mapped);
        Ok(self.0.retire(mappings))
    }

    fn unmap_all(&self) -> Retired {
        let mappings = std::mem::take(&mut *lock(&self.0.mapped)).into_iter().collect();
        self.0.retire(mappings)
    }

    fn bytes(retired: &Retired) -> u64 {
        retired.mappings.iter().map(|&(_, size)| size).sum()
    }
}

impl Drop for Retired {
    fn drop(&mut self) {
        for (address, _) in &self.mappings {
            lock(&self.retired).remove(address);
        }
        if std::thread::panicking() || self.mappings.is_empty() {
            return;
        }
        let in_use = self.online.iter().any(|(engine, turns)| engine.turns.load(Ordering::Relaxed) == *turns);
        self.log.check(Checker::ResetAndRelease, !in_use, || {
            let address = self.mappings[0].0;
            format!("memory at {address:#x} is given back before every engine had a turn")
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
