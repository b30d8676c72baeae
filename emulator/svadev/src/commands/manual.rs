//! `svadev qemu-args` and `svadev dmar`, for a QEMU that is started separately.
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::socket_dir::socket_dir;
use crate::cli::{DmarArgs, Format, QemuArgsArgs, UnitAddress};
use svadev_launcher::{
    control::Message,
    dmar::write_table,
    exit::{Exit, Failure, OrExit as _, Outcome},
    guest::{self, Image, Request},
    guest_image::Job,
    qemu::args::{Boot, CommandLine, libvirt_xml, shell_quoted},
    run::{Ended, Observer, Terminal},
    topology::Topology,
};

/// Where the backend puts the sockets of a machine's functions in a folder.
fn sockets(topology: &Topology, folder: &Path) -> Vec<(svadev_fabric::Bdf, PathBuf)> {
    topology.functions().map(|bdf| (bdf, svadev_launcher::backend::socket_path(folder, bdf))).collect()
}

/// Prints the arguments.
pub(crate) fn qemu_args(args: &QemuArgsArgs) -> Outcome<u8> {
    let topology = args.machine.topology()?;
    let functions = sockets(&topology, &socket_dir(args.socket_dir.as_deref(), args.name.as_deref())?);
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
pub(crate) fn dmar(args: &DmarArgs) -> Outcome<u8> {
    let topology = args.machine.topology()?;
    let addresses = match &args.address {
        UnitAddress::At(addresses) => addresses.clone(),
        UnitAddress::Auto => learn(args)?,
    };
    let units = topology.iommus.len();
    if addresses.len() != units {
        let message = format!("--address has {} addresses: write one for each unit, {units} in all", addresses.len());
        return Err(Failure::new(Exit::Usage, message));
    }
    write_table(&topology, &addresses, &args.output)?;
    for (index, address) in addresses.iter().enumerate() {
        say!("{}: {}'s BAR is at {address:#x}", args.output.display(), topology.unit_name(index));
    }
    Ok(Exit::Success.code())
}

/// Starts QEMU for as long as its firmware needs.
fn learn(args: &DmarArgs) -> Outcome<Vec<u64>> {
    let request = Request {
        command: "dmar",
        topology: args.machine.topology()?,
        host: args.host.options(),
        image: Image::Job { job: Job { mode: "shell", ..Job::default() }, needs_module: false },
        share: None,
        terminal: Terminal::Log,
        until_placed: true,
    };
    match guest::run(request, &mut Silent)?.conclude(false)? {
        Ended::Placed(addresses) => Ok(addresses),
        other => Err(Failure::new(Exit::Backend, format!("firmware never placed every IOMMU's BAR ({other:?})"))),
    }
}

struct Silent;

impl Observer for Silent {
    fn control(&mut self, _: &Message) {}
    fn kernel(&mut self, _: &str) {}
}
