//! The asynchronous runtime of a run.
use crate::exit::{Exit, OrExit as _, Outcome};

/// Runs a future, with local tasks, on this thread: children are tied to the life of the thread that starts them.
pub fn block_on<F: Future>(future: F) -> Outcome<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Setup)?;
    let output = tokio::task::LocalSet::new().block_on(&runtime, future);
    // A thread may still wait in a read of standard input, so the runtime does not wait for its threads.
    runtime.shutdown_background();
    Ok(output)
}
