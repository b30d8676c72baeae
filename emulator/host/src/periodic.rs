//! A thread that does its work once in each period.
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;

use crate::events::{Events, PanicWatch};

/// The running thread. Dropping it ends it, after the work was done once more.
#[derive(Debug)]
pub(crate) struct Periodic {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Periodic {
    /// Starts it: `work`, each `period`.
    pub(crate) fn start(
        name: &str,
        period: Duration,
        events: &Events,
        mut work: impl FnMut() + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (stop, stopped) = channel();
        let watch = PanicWatch::new(events, name);
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let _watch = watch;
                let mut ends = false;
                while !ends {
                    ends = stopped.recv_timeout(period) != Err(RecvTimeoutError::Timeout);
                    work();
                }
            })
            .with_context(|| format!("cannot start the thread {name:?}"))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Periodic {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic was reported by its watch.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn work_is_done_again_and_again_and_once_more_at_the_end() {
        let (done, seen) = channel();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let events = Events::new(drop);
        let thread = Periodic::start("test", Duration::from_micros(100), &events, move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = done.send(());
        });
        let thread = thread.unwrap();
        (0..3).for_each(|_| seen.recv().unwrap());
        drop(thread);
        assert!(count.load(Ordering::Relaxed) >= 4);
        seen.iter().for_each(drop);
    }
}
