//! `svadev serve`: only the backend, for QEMUs that are started separately, one after another.
use std::path::Path;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{json::write_json, socket_dir::socket_dir};
use crate::cli::ServeArgs;
use svadev_launcher::{
    backend::{Backend, BackendEvent, BackendOptions},
    dmar::TableFile,
    exit::{Exit, Failure, OrExit as _, Outcome},
    run::audit::gap,
    runtime::block_on,
};

/// Serves until SIGINT or SIGTERM, which is the normal end.
pub(crate) fn run(args: &ServeArgs) -> Outcome<u8> {
    let topology = args.machine.topology()?;
    let folder = socket_dir(args.socket_dir.as_deref())?;
    make_private_folder(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))
        .or_exit(Exit::Setup)?;
    let mut table = TableFile::open(args.dmar.as_deref(), &topology)?;
    block_on(async {
        let options = BackendOptions { socket_dir: folder, timeout_scale: 1 };
        let mut backend =
            Backend::start(&topology, &options).context("cannot start the backend").or_exit(Exit::Backend)?;
        for (bdf, path) in backend.sockets() {
            say!("{bdf} listens on {}", path.display());
        }
        let mut reports = 0;
        let ended = serve(&mut backend, &mut table, &mut reports).await;
        let counters = backend.snapshot();
        backend.stop();
        if let Some(gap) = counters.audit.as_ref().and_then(gap) {
            say!("audit: {gap}");
        }
        if let Some(path) = &args.json {
            write_json(path, &counters)?;
        }
        match reports {
            1.. if ended.is_ok() => {
                Err(Failure::new(Exit::Audit, format!("the auditor made {reports} reports: see the messages above")))
            }
            _ => ended,
        }
    })??;
    Ok(Exit::Success.code())
}

async fn serve(backend: &mut Backend, table: &mut TableFile<'_>, reports: &mut u64) -> Outcome<()> {
    let mut interrupt = signal(SignalKind::interrupt()).or_exit(Exit::Setup)?;
    let mut terminate = signal(SignalKind::terminate()).or_exit(Exit::Setup)?;
    loop {
        let event = tokio::select! {
            event = backend.events().recv() => event,
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        };
        match event {
            Some(BackendEvent::Connected(bdf)) => say!("{bdf}: connected"),
            Some(BackendEvent::Disconnected(bdf)) => say!("{bdf}: disconnected"),
            Some(BackendEvent::UnitPlaced { address }) => table.placed(address)?,
            Some(BackendEvent::Audit(finding)) => {
                *reports += 1;
                say!("audit: {finding}");
            }
            Some(BackendEvent::Fatal(text)) => return Err(Failure::new(Exit::Backend, text)),
            None => return Err(Failure::new(Exit::Backend, "the backend ended unexpectedly")),
        }
    }
}

/// Makes a folder that only its owner can enter: whoever enters it can drive the devices.
fn make_private_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        result => result,
    }
}
