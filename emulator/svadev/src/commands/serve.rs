//! `svadev serve`: only the backend, for QEMUs that are started separately, one after another.
use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    json::{check_writable, write_json},
    socket_dir::socket_dir,
};
use crate::cli::ServeArgs;
use svadev_launcher::{
    backend::{Backend, BackendEvent, BackendOptions},
    dmar::TableFile,
    exit::{Exit, Failure, OrExit as _, Outcome},
    results::{Framed, Kind},
    run::audit::gap,
    runtime::block_on,
    service::{self, ServeFolder},
};

/// Serves until SIGINT, SIGTERM, SIGHUP or SIGQUIT, which is the normal end.
pub(crate) fn run(args: &ServeArgs) -> Outcome<u8> {
    let topology = args.backend.topology()?;
    let folder = socket_dir(args.socket_dir.as_deref(), args.name.as_deref())?;
    check_writable(args.json.as_deref())?;
    let _folder = ServeFolder::take(&folder, &topology).or_exit(Exit::Setup)?;
    let mut table = TableFile::open(args.dmar.as_deref(), &topology)?;
    block_on(async {
        let options = BackendOptions { socket_dir: folder.clone(), timeout_scale: args.timeout_scale };
        let mut backend =
            Backend::start(&topology, &options).context("cannot start the backend").or_exit(Exit::Backend)?;
        let sockets = backend.sockets().iter().map(|(_, path)| path.as_path());
        service::set_rights(&folder, sockets, args.socket_group.as_deref(), args.socket_mode).or_exit(Exit::Setup)?;
        for (bdf, path) in backend.sockets() {
            say!("{bdf} listens on {}", path.display());
        }
        say!("ready: {} functions", backend.sockets().len());
        service::ready();
        let mut reports = 0;
        let ended = serve(&mut backend, &mut table, &mut reports).await;
        let counters = backend.snapshot();
        backend.stop();
        if let Some(gap) = counters.audit.as_ref().and_then(gap) {
            say!("audit: {gap}");
        }
        let written = args.json.as_deref().map_or(Ok(()), |path| {
            write_json(path, &Framed::new(Kind::Serve, &serde_json::json!({ "counters": counters })))
        });
        match reports {
            1.. if ended.is_ok() => {
                Err(Failure::new(Exit::Audit, format!("the auditor made {reports} reports: see the messages above")))
            }
            // How it ended counts more than a file that cannot be written.
            _ => ended.and(written),
        }
    })??;
    Ok(Exit::Success.code())
}

async fn serve(backend: &mut Backend, table: &mut TableFile<'_>, reports: &mut u64) -> Outcome<()> {
    // A terminal that is closed (SIGHUP) and Ctrl-\ (SIGQUIT) end it as SIGINT and SIGTERM do: nothing stays behind.
    let mut interrupt = signal(SignalKind::interrupt()).or_exit(Exit::Setup)?;
    let mut terminate = signal(SignalKind::terminate()).or_exit(Exit::Setup)?;
    let mut hang_up = signal(SignalKind::hangup()).or_exit(Exit::Setup)?;
    let mut quit = signal(SignalKind::quit()).or_exit(Exit::Setup)?;
    loop {
        let event = tokio::select! {
            event = backend.events().recv() => event,
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = quit.recv() => return Ok(()),
        };
        match event {
            Some(BackendEvent::Connected(bdf)) => say!("{bdf}: connected"),
            Some(BackendEvent::Disconnected(bdf)) => {
                say!("{bdf}: disconnected");
                table.disconnected();
            }
            Some(BackendEvent::UnitPlaced { unit, address }) => table.placed(unit, address),
            Some(BackendEvent::Audit(finding)) => {
                *reports += 1;
                say!("audit: {finding}");
            }
            Some(BackendEvent::Fatal(text)) => return Err(Failure::new(Exit::Backend, text)),
            None => return Err(Failure::new(Exit::Backend, "the backend ended unexpectedly")),
        }
    }
}
