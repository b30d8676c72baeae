//! Lines for the user. Errors are ignored: a closed terminal is no reason to stop.
//!
//! `say!` is for what a person must read, `note!` for what one may like to know: `--quiet` hides it. `out!` prints
//! results. Steps that take long show that they go on, see [`Step`].
use std::{
    fmt,
    io::{IsTerminal as _, Write as _},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anstream::ColorChoice;
use anstyle::{AnsiColor, Effects};
use indicatif::{ProgressBar, ProgressStyle};

/// A step that takes no longer than this is not shown.
const SHOW_AFTER: Duration = Duration::from_secs(2);
/// Time between two lines about a step where no line can change.
const REPEAT: Duration = Duration::from_secs(60);

static QUIET: AtomicBool = AtomicBool::new(false);
/// The line about a step that is shown now, if any.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// From now on, notes and steps are not shown.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether notes and steps are hidden.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Always or never uses colours. `None`: on a terminal, unless NO_COLOR or the like says otherwise.
pub fn set_color(always: Option<bool>) {
    match always {
        None => ColorChoice::Auto,
        Some(true) => ColorChoice::Always,
        Some(false) => ColorChoice::Never,
    }
    .write_global();
}

/// How a word is to stand out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// It is as it should be.
    Good,
    /// It is not.
    Bad,
    /// It was left out, or may be wrong.
    Aside,
}

impl Style {
    /// The text in this style. Where colours are off, `say!` and `out!` print the text alone.
    pub fn on(self, text: &str) -> String {
        let color = match self {
            Self::Good => AnsiColor::Green,
            Self::Bad => AnsiColor::Red,
            Self::Aside => AnsiColor::Yellow,
        };
        let style = color.on_default().effects(if self == Self::Bad { Effects::BOLD } else { Effects::new() });
        format!("{style}{text}{style:#}")
    }
}

/// Prints a message for the user to standard error.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::say::error_line(format_args!("svadev: {}", format_args!($($arg)*))) };
}

/// Prints a message to standard error that `--quiet` hides.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => { if !$crate::say::is_quiet() { $crate::say!($($arg)*) } };
}

/// Prints a line of results to standard output.
#[macro_export]
macro_rules! out {
    ($($arg:tt)*) => { $crate::say::output_line(format_args!($($arg)*)) };
}

/// Prints a line to standard error.
pub fn error_line(line: fmt::Arguments<'_>) {
    beside_the_step(|| _ = writeln!(anstream::stderr().lock(), "{line}"));
}

/// Prints a line to standard output.
pub fn output_line(line: fmt::Arguments<'_>) {
    beside_the_step(|| _ = writeln!(anstream::stdout().lock(), "{line}"));
}

/// Prints while the line about a step is away.
fn beside_the_step(print: impl FnOnce()) {
    match &*SHOWN.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// A step of the work. If it takes longer than two seconds, it is shown: on a terminal as a line that changes and goes
/// at the end, otherwise as a line now and then.
#[derive(Debug)]
pub struct Step {
    /// Dropped at the end.
    going_on: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Step {
    /// Begins a step. It ends when this is dropped.
    pub fn begin(what: impl Into<String>) -> Self {
        if is_quiet() {
            return Self { going_on: None, thread: None };
        }
        let (going_on, ended) = mpsc::channel();
        let what = what.into();
        let show = move || show(&what, &ended);
        // Without the thread, the step is not shown.
        let thread = std::thread::Builder::new().name("progress".into()).spawn(show).ok();
        Self { going_on: Some(going_on), thread }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        drop(self.going_on.take());
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

fn show(what: &str, ended: &mpsc::Receiver<()>) {
    let since = Instant::now();
    let goes_on = |time| ended.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout);
    if !goes_on(SHOW_AFTER) {
        return;
    }
    if !std::io::stderr().is_terminal() {
        say!("{what}");
        while goes_on(REPEAT) {
            say!("{what}: {} s", since.elapsed().as_secs());
        }
        return;
    }
    let bar = ProgressBar::new_spinner().with_message(what.to_owned()).with_elapsed(since.elapsed());
    bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("the template is constant"));
    *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
    while goes_on(Duration::from_millis(120)) {
        bar.tick();
    }
    *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
    bar.finish_and_clear();
}
