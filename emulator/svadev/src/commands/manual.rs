//! `svadev qemu-args` and `svadev dmar`: for a QEMU that somebody else starts.
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::guest::{self, Image, Request};
use crate::{
    cli::{DmarArgs, Format, QemuArgsArgs, UnitAddress},
    control::Message,
    dmar,
    exit::{Exit, Failure, OrExit as _, Outcome},
    guest_image::Job,
    qemu::args::{Boot, CommandLine, libvirt_xml, shell_quoted},
    run::{Ended, Observer, Terminal},
    topology::Topology,
};

/// The folder of `serve`'s sockets unless one is given.
pub fn socket_dir(choice: Option<&Path>) -> Outcome<PathBuf> {
    if let Some(path) = choice {
        return std::path::absolute(path)
            .with_context(|| format!("--socket-dir {}", path.display()))
            .or_exit(Exit::Usage);
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = runtime.context("there is no XDG_RUNTIME_DIR: give a folder with --socket-dir").or_exit(Exit::Usage)?;
    Ok(base.join("svadev"))
}

/// Where the backend puts the sockets of a machine's functions in a folder.
fn sockets(topology: &Topology, folder: &Path) -> Vec<(svadev_fabric::Bdf, PathBuf)> {
    topology.functions().map(|bdf| (bdf, crate::backend::socket_path(folder, bdf))).collect()
}

/// Prints the arguments.
pub fn qemu_args(args: &QemuArgsArgs) -> Outcome<u8> {
    let topology = args.machine.topology()?;
    let functions = sockets(&topology, &socket_dir(args.socket_dir.as_deref())?);
    let dmar = std::path::absolute(&args.dmar).context("--dmar").or_exit(Exit::Usage)?;
    let kernel = topology.machine.kernel.as_deref();
    let line = CommandLine {
        topology: &topology,
        accel: topology.machine.accel,
        functions: &functions,
        dmar: Some(&dmar),
        boot: kernel.map(|kernel| Boot { kernel, initrd: None }),
        channels: None,
        share: None,
        extra: &[],
    };
    match args.format {
        Format::Shell => out!("{}", shell_quoted(&line.build())),
        Format::Json => out!("{}", serde_json::to_string(&line.build()).or_exit(Exit::Usage)?),
        Format::LibvirtXml => out!("{}", libvirt_xml(&line).trim_end()),
    }
    Ok(Exit::Success.code())
}

/// Writes the table.
pub fn dmar(args: &DmarArgs) -> Outcome<u8> {
    let topology = args.machine.topology()?;
    let address = match args.address {
        UnitAddress::At(address) => address,
        UnitAddress::Auto => learn(args)?,
    };
    write_table(&topology, address, &args.output)?;
    say!("{}: the unit is at {address:#x}", args.output.display());
    Ok(Exit::Success.code())
}

/// Writes the table with the unit at an address, so that a reader sees the old one or the new one.
pub fn write_table(topology: &Topology, address: u64, file: &Path) -> Outcome<()> {
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let write = || -> anyhow::Result<()> {
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        std::io::Write::write_all(&mut temporary, &dmar::table(topology, address))?;
        // QEMU may run as another user, as it does under libvirt; the table is no secret.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        temporary.as_file().set_permissions(readable)?;
        temporary.persist(file)?;
        Ok(())
    };
    write().with_context(|| file.display().to_string()).or_exit(Exit::Usage)
}

/// Starts QEMU for as long as its firmware needs.
fn learn(args: &DmarArgs) -> Outcome<u64> {
    let request = Request {
        command: "dmar",
        machine: &args.machine,
        host: &args.host,
        image: Image::Job { job: Job { mode: "shell", ..Job::default() }, needs_module: false },
        share: None,
        terminal: Terminal::Log,
        until_placed: true,
    };
    match guest::run(request, &mut Silent)?.conclude(false)? {
        Ended::Placed(address) => Ok(address),
        other => Err(Failure::new(Exit::Backend, format!("the unit's BAR was never placed ({other:?})"))),
    }
}

struct Silent;

impl Observer for Silent {
    fn control(&mut self, _: &Message) {}
    fn kernel(&mut self, _: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dmar.bin");
        let topology = Topology::parse("t", crate::topology::DEFAULT).unwrap();
        for address in [0xfebf_f000, 0xc000_0000] {
            write_table(&topology, address, &file).unwrap();
            assert_eq!(std::fs::read(&file).unwrap(), dmar::table(&topology, address));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
        assert_eq!(write_table(&topology, 0x1000, Path::new("/no/such/f")).unwrap_err().exit, Exit::Usage);
    }
}
