//! What a host reports while it runs.
use std::fmt;
use std::sync::Arc;

use svadev_fabric::Bdf;
use svadev_iommu::Finding;

/// An event that the host reports to its owner.
#[derive(Clone, Debug)]
pub enum HostEvent {
    /// A VMM attached to this function and gave it memory.
    Connected(Bdf),
    /// The VMM's connection ended. The function is in its initial state, and another VMM may attach.
    Disconnected(Bdf),
    /// Firmware or kernel placed a unit's registers here, and they are decoded.
    UnitPlaced {
        /// The function that carries the unit.
        unit: Bdf,
        /// Guest-physical address.
        address: u64,
    },
    /// The auditor found something.
    Audit(Box<Finding>),
    /// A thread ended that must not end. The host should be stopped.
    Fatal(String),
}

/// Where events go.
#[derive(Clone)]
pub(crate) struct Events(Arc<dyn Fn(HostEvent) + Send + Sync>);

impl Events {
    /// Events go to `sink`, from any thread. It must not block.
    pub(crate) fn new(sink: impl Fn(HostEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    pub(crate) fn send(&self, event: HostEvent) {
        tracing::debug!(?event, "host");
        (self.0)(event);
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

/// Reports a thread of the host that panics: without it the guest would wait for that thread for ever.
pub(crate) struct PanicWatch {
    events: Events,
    thread: String,
}

impl PanicWatch {
    /// A watch for the thread of this name, which holds it while it runs.
    pub(crate) fn new(events: &Events, thread: impl Into<String>) -> Self {
        Self { events: events.clone(), thread: thread.into() }
    }
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = format!("the thread {:?} panicked: see the messages above", self.thread);
            self.events.send(HostEvent::Fatal(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_that_panics_is_heard_of_and_one_that_ends_is_not() {
        let (sender, heard) = mpsc::channel();
        let events = Events::new(move |event| sender.send(event).unwrap());
        let (good, bad) = (PanicWatch::new(&events, "good"), PanicWatch::new(&events, "bad"));
        std::thread::spawn(move || drop(good)).join().unwrap();
        let panicked = std::thread::spawn(move || {
            let _watch = bad;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        let Ok(HostEvent::Fatal(text)) = heard.try_recv() else { panic!("no word of the panic") };
        assert!(text.contains("bad"), "{text}");
        assert!(heard.try_recv().is_err());
    }
}
