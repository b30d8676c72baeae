//! What a write to configuration space did.

/// One thing that a write changed. Values are those after the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigEffect {
    /// Function level reset was initiated (§6.6.2). Configuration space is reset already; what that changed follows. The
    /// rest of the function is to be reset by whoever sees this, within 100 ms, without an access of the old work after it.
    Flr,
    /// The function answers accesses to its BARs, or does not.
    MemorySpace(bool),
    /// The function may issue memory requests and interrupts, or may not.
    BusMaster(bool),
    /// INTx is forbidden, or not. The functions have none; for completeness.
    InterruptDisable(bool),
    /// A BAR is decoded at another address, or nowhere (see [`crate::ConfigSpace::bar_address`]).
    Bar {
        /// Which, 0 to 5.
        bar: u32,
        /// Guest-physical address.
        address: Option<u64>,
    },
    /// MSI-X control changed.
    MsiX {
        /// Interrupts are MSI-X.
        enabled: bool,
        /// All vectors are masked.
        masked: bool,
    },
    /// ATS control changed. On disable, every translation that came by ATS is to be forgotten (§10.5.1.3).
    Ats {
        /// Translations may be requested and cached.
        enabled: bool,
        /// Log2 of the smallest translation, bytes: 12 or more.
        smallest_translation_unit_log2: u8,
    },
    /// Software asked to forget outstanding page requests, which it may while page requests are disabled.
    PriReset,
    /// Page request control or allocation changed. On disable, tell the space when none is outstanding any more:
    /// [`crate::ConfigSpace::set_page_requests_stopped`].
    Pri {
        /// Page requests may be sent.
        enabled: bool,
        /// Most that may be outstanding, never above the capacity.
        allocation: u32,
    },
    /// PASID control changed.
    Pasid {
        /// Requests may carry a PASID.
        enabled: bool,
    },
}

/// Most effects of one write: one of each, and a BAR each.
const MAX: usize = 15;

/// What a write changed, in the order in which it is to be handled; nothing for most writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "the rest of the function learns from here what configuration space allows"]
pub struct ConfigEffects {
    effects: [Option<ConfigEffect>; MAX],
    len: usize,
}

impl ConfigEffects {
    pub(crate) fn push(&mut self, effect: ConfigEffect) {
        self.effects[self.len] = Some(effect);
        self.len += 1;
    }

    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl IntoIterator for ConfigEffects {
    type Item = ConfigEffect;
    type IntoIter = std::iter::Flatten<std::array::IntoIter<Option<ConfigEffect>, MAX>>;

    fn into_iter(self) -> Self::IntoIter {
        self.effects.into_iter().flatten()
    }
}
