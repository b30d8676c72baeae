//! `svadev serve`: the backend alone, for QEMUs that somebody else starts, one after another.
use std::path::Path;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{json::write_json, socket_dir::socket_dir};
use crate::cli::ServeArgs;
use svadev_launcher::{
    backend::{Backend, BackendEvent, BackendOptions},
    dmar::write_table,
    exit::{Exit, Failure, OrExit as _, Outcome},
    run::audit::gap,
    runtime::block_on,
    topology::Topology,
};

/// What the table says as long as no firmware has spoken: a page where nothing is.
const UNKNOWN_ADDRESS: u64 = 0xfebf_f000;

/// Runs it until SIGINT or SIGTERM, which is its ordinary end.
pub fn run(args: &ServeArgs) -> Outcome<u8> {
    let topology = args.machine.topology()?;
    let folder = socket_dir(args.socket_dir.as_deref())?;
    make_private_folder(&folder).with_context(|| folder.display().to_string()).or_exit(Exit::Setup)?;
    let mut table = Table::open(args.dmar.as_deref(), &topology)?;
    block_on(async {
        let options = BackendOptions { socket_dir: folder, timeout_scale: 1 };
        let mut backend = Backend::start(&topology, &options).context("starting the backend").or_exit(Exit::Backend)?;
        for (bdf, path) in backend.sockets() {
            say!("{bdf} on {}", path.display());
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
                Err(Failure::new(Exit::Audit, format!("the auditor made {reports} reports: see above")))
            }
            _ => ended,
        }
    })??;
    Ok(Exit::Success.code())
}

async fn serve(backend: &mut Backend, table: &mut Table<'_>, reports: &mut u64) -> Outcome<()> {
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
            None => return Err(Failure::new(Exit::Backend, "the backend ended by itself")),
        }
    }
}

/// Who may enter the folder may drive the devices.
fn make_private_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        result => result,
    }
}

/// The DMAR table's file that is kept right.
#[derive(Debug)]
struct Table<'a> {
    file: Option<&'a Path>,
    topology: &'a Topology,
    address: u64,
}

impl<'a> Table<'a> {
    /// The file as it is if it is a table of this machine, else a new one.
    fn open(file: Option<&'a Path>, topology: &'a Topology) -> Outcome<Self> {
        let mut table = Self { file, topology, address: UNKNOWN_ADDRESS };
        let Some(path) = file else { return Ok(table) };
        match std::fs::read(path).ok().and_then(|bytes| known_address(topology, &bytes)) {
            Some(address) => table.address = address,
            None => write_table(topology, table.address, path)?,
        }
        Ok(table)
    }

    fn placed(&mut self, address: u64) -> Outcome<()> {
        let Some(file) = self.file else {
            say!("the unit is at {address:#x}");
            return Ok(());
        };
        if address == self.address {
            say!("the unit is at {address:#x}, as {} says", file.display());
            return Ok(());
        }
        write_table(self.topology, address, file)?;
        self.address = address;
        say!("the unit is at {address:#x}; {} was wrong and is right now: restart QEMU", file.display());
        Ok(())
    }
}

/// Where a table of this machine says that the unit is.
fn known_address(topology: &Topology, bytes: &[u8]) -> Option<u64> {
    let address = u64::from_le_bytes(bytes.get(20..28)?.try_into().ok()?);
    (address & 0xfff == 0 && svadev_launcher::dmar::table(topology, address) == bytes).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_follows_the_bar_and_is_kept_from_run_to_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dmar.bin");
        let topology = Topology::parse("t", svadev_launcher::topology::DEFAULT).unwrap();
        let mut table = Table::open(Some(&file), &topology).unwrap();
        table.placed(0x38_0000_0000).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), svadev_launcher::dmar::table(&topology, 0x38_0000_0000));
        assert_eq!(Table::open(Some(&file), &topology).unwrap().address, 0x38_0000_0000);
        std::fs::write(&file, "not a table").unwrap();
        assert_eq!(Table::open(Some(&file), &topology).unwrap().address, UNKNOWN_ADDRESS);
        assert_eq!(std::fs::read(&file).unwrap(), svadev_launcher::dmar::table(&topology, UNKNOWN_ADDRESS));
    }
}
