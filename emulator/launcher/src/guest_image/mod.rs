//! The initial RAM disk that a guest boots into: PID 1, the guest's programs, the module, busybox, and the job to do.
pub mod build;
mod cpio;
mod program;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Seek as _, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;

use self::cpio::Archive;

/// What PID 1 is to do, as it stands in `/svadev/job.json` (docs/design/0001-foundations.md).
#[derive(Clone, Debug, Default, Serialize)]
pub struct Job {
    /// `test`, `demo`, `run` or `shell`.
    pub mode: &'static str,
    /// Which tests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Folder to run in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Environment to add.
    pub env: BTreeMap<String, String>,
    /// Standard input comes to the guest in frames, so that the guest learns when it ends.
    pub framed_input: bool,
    /// Mount the host's folder.
    pub share: bool,
    /// What the module is loaded with.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub module_parameters: String,
    /// What to multiply time limits by.
    pub timeout_scale: u32,
}

/// What an image is made of.
#[derive(Clone, Debug)]
pub struct Contents<'a> {
    /// Our programs, PID 1 among them.
    pub programs: &'a [PathBuf],
    /// Static busybox.
    pub busybox: &'a Path,
    /// Our module.
    pub module: Option<&'a Path>,
    /// The kernel's module for disks in memory (`brd`), compressed or not, where it is no part of the kernel.
    pub ram_disk: Option<&'a Path>,
    /// The job.
    pub job: Job,
    /// The host's folder that the guest mounts at [`SHARE`].
    pub share: Option<&'a Path>,
}

/// Where the guest mounts the host's folder.
pub const SHARE: &str = "/mnt/share";
/// Folders that are mounted over in the guest, so that a file that is packed there is not seen.
const HIDDEN: [&str; 4] = ["/dev", "/proc", "/sys", SHARE];
/// Where the guest's tests look for the module of disks in memory.
const RAM_DISK: &str = "/svadev/brd.ko";

/// Folders that programs expect, and that mounts need.
const FOLDERS: [&str; 12] =
    ["/bin", "/sbin", "/usr/bin", "/usr/sbin", "/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/etc", "/mnt/share"];

/// Writes the image. A program of the host named first in `job.argv` goes along, and `job.argv` then names it by its
/// path.
pub fn write(contents: Contents<'_>, out: &Path) -> anyhow::Result<()> {
    let mut archive = Archive::new();
    for folder in FOLDERS {
        archive.folder(folder)?;
    }
    // Where the kernel finds PID 1's first standard streams, before there is a devtmpfs.
    archive.character_device("/dev/console", 5, 1)?;
    archive.bytes("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n".to_vec(), 0o644)?;
    archive.bytes("/etc/group", b"root:x:0:\n".to_vec(), 0o644)?;
    add_programs(&mut archive, "/bin", contents.programs)?;
    let init = contents
        .programs
        .iter()
        .find(|path| path.ends_with(build::INIT))
        .context("the guest's PID 1 is missing among its programs")?;
    archive.host_file("/init", init, 0o755)?;
    add_busybox(&mut archive, contents.busybox)?;
    if let Some(module) = contents.module {
        archive.host_file("/svadev/svadev.ko", module, 0o644)?;
    }
    if let Some(module) = contents.ram_disk {
        archive.host_file(RAM_DISK, module, 0o644)?;
    }
    let mut job = contents.job;
    if job.mode == "run" {
        add_users_program(&mut archive, &mut job.argv, contents.share)?;
    }
    archive.bytes("/svadev/job.json", serde_json::to_vec(&job)?, 0o644)?;
    archive.write(File::create(out)?)
}

/// The smallest image: it says `word` on the console and powers off.
pub fn write_probe(busybox: &Path, word: &str, out: &Path) -> anyhow::Result<()> {
    let mut archive = Archive::new();
    archive.character_device("/dev/console", 5, 1)?;
    archive.host_file("/bin/busybox", busybox, 0o755)?;
    let script = format!("#!/bin/busybox sh\n/bin/busybox echo '{word}'\n/bin/busybox poweroff -f\n");
    archive.bytes("/init", script.into_bytes(), 0o755)?;
    archive.write(File::create(out)?)
}

/// A user's own initial RAM disk, with one archive after it that holds only `/svadev`: the module, and our programs in
/// `/svadev/bin`. The kernel unpacks one archive after another, each compressed in its own way or not at all.
pub fn append(initrd: &Path, programs: &[PathBuf], module: Option<&Path>, out: &Path) -> anyhow::Result<()> {
    let mut archive = Archive::new();
    add_programs(&mut archive, "/svadev/bin", programs)?;
    if let Some(module) = module {
        archive.host_file("/svadev/svadev.ko", module, 0o644)?;
    }
    let mut file = File::create(out)?;
    std::io::copy(&mut File::open(initrd).with_context(|| initrd.display().to_string())?, &mut file)?;
    // Archives begin at multiples of four bytes; zeros may stand between them (buffer-format.rst).
    let padding = file.stream_position()?.next_multiple_of(4) - file.stream_position()?;
    file.write_all(&[0; 4][..usize::try_from(padding).expect("less than four")])?;
    archive.write(file)
}

fn add_programs(archive: &mut Archive, folder: &str, programs: &[PathBuf]) -> anyhow::Result<()> {
    for program in programs {
        let name =
            program.file_name().and_then(|name| name.to_str()).context("the name of a guest program is not UTF-8")?;
        archive.host_file(&format!("{folder}/{name}"), program, 0o755)?;
    }
    Ok(())
}

fn add_busybox(archive: &mut Archive, busybox: &Path) -> anyhow::Result<()> {
    archive.host_file("/bin/busybox", busybox, 0o755)?;
    let mut command = Command::new(busybox);
    command.arg("--list");
    crate::qemu::process::die_with_parent(&mut command);
    let output = command.output().with_context(|| busybox.display().to_string())?;
    ensure!(output.status.success(), "{} --list: {}", busybox.display(), output.status);
    for applet in
        String::from_utf8_lossy(&output.stdout).lines().filter(|name| *name != "busybox" && !name.contains('/'))
    {
        archive.link(&format!("/bin/{applet}"), "busybox")?;
    }
    // The kernel calls it by this name when it wants a module.
    archive.link("/sbin/modprobe", "/bin/busybox")?;
    Ok(())
}

/// Packs the program, unless its bare name is one that the guest has.
fn add_users_program(archive: &mut Archive, argv: &mut [String], share: Option<&Path>) -> anyhow::Result<()> {
    let program = argv.first_mut().context("there is no program to run")?;
    if let (Some(share), Ok(rest)) = (share, Path::new(&*program).strip_prefix(SHARE)) {
        // The program comes by way of the shared folder; its libraries are packed.
        let path = share.join(rest);
        ensure!(path.is_file(), "{program}: no such program: {} is no file", path.display());
        return pack(archive, &program::files(&path, &|path| archive.contains(path))?[1..]);
    }
    let path = if program.contains('/') {
        std::path::absolute(&*program)?
    } else if archive.contains(&format!("/bin/{program}")) {
        return Ok(());
    } else {
        crate::qemu::process::find_in_path(program)
            .with_context(|| format!("{program}: no such program in the guest or in this host's PATH"))?
    };
    let text = path.to_str().context("the program's path is not UTF-8")?.to_owned();
    if !path.exists() && archive.contains(&text) {
        return Ok(());
    }
    ensure!(path.is_file(), "{text}: no such program");
    if let Some(hidden) = HIDDEN.iter().find(|hidden| path.starts_with(hidden)) {
        bail!("{text}: the guest has its own {hidden}, so the program would not be seen: copy it to another folder");
    }
    pack(archive, &program::files(&path, &|path| archive.contains(path))?)?;
    *program = text;
    Ok(())
}

/// Packs files of the host under their own names.
fn pack(archive: &mut Archive, files: &[PathBuf]) -> anyhow::Result<()> {
    for file in files {
        let name = file.to_str().context("a library's path is not UTF-8")?;
        archive.host_file(name, file, 0o755)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_is_what_pid_1_reads() {
        let job = Job { mode: "run", argv: vec!["/a".into()], timeout_scale: 1, ..Job::default() };
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(
            text,
            r#"{"mode":"run","argv":["/a"],"env":{},"framed_input":false,"share":false,"timeout_scale":1}"#
        );
    }

    #[test]
    fn a_program_the_guest_has_is_not_packed() {
        let mut archive = Archive::new();
        archive.link("/bin/ls", "busybox").unwrap();
        let mut argv = vec!["ls".to_owned(), "-l".to_owned()];
        add_users_program(&mut archive, &mut argv, None).unwrap();
        assert_eq!(argv, ["ls", "-l"]);
        let mut argv = vec!["/bin/false".to_owned()];
        add_users_program(&mut archive, &mut argv, None).unwrap();
        assert!(archive.contains("/bin/false"));
        for missing in ["/no/such/program", "no-such-program-anywhere", "/tmp", "/dev/null"] {
            assert!(add_users_program(&mut archive, &mut [missing.to_owned()], None).is_err(), "{missing}");
        }
    }

    #[test]
    fn a_program_in_the_shared_folder_stays_there_and_its_libraries_are_packed() {
        let share = tempfile::tempdir().unwrap();
        std::fs::copy("/bin/false", share.path().join("prog")).unwrap();
        let mut archive = Archive::new();
        archive.folder(SHARE).unwrap();
        let mut argv = vec!["/mnt/share/prog".to_owned()];
        add_users_program(&mut archive, &mut argv, Some(share.path())).unwrap();
        assert_eq!(argv, ["/mnt/share/prog"]);
        assert!(!archive.contains("/mnt/share/prog") && !archive.contains(share.path().to_str().unwrap()));
        assert!(archive.contains("/lib64/ld-linux-x86-64.so.2"), "{archive:?}");
        let mut missing = ["/mnt/share/none".to_owned()];
        let error = add_users_program(&mut archive, &mut missing, Some(share.path())).unwrap_err();
        assert!(error.to_string().contains("no such program"), "{error}");
    }

    #[test]
    fn a_program_that_the_guest_would_mount_over_is_refused() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let program = folder.path().join("prog");
        std::fs::copy("/bin/false", &program).unwrap();
        let mut argv = [program.to_str().unwrap().to_owned()];
        let error = add_users_program(&mut Archive::new(), &mut argv, None).unwrap_err();
        assert!(error.to_string().contains("another folder"), "{error}");
    }

    #[test]
    fn an_appended_archive_begins_at_a_multiple_of_four() {
        let folder = tempfile::tempdir().unwrap();
        let (initrd, out) = (folder.path().join("initrd"), folder.path().join("out"));
        std::fs::write(&initrd, b"12345").unwrap();
        append(&initrd, &[], None, &out).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        assert_eq!(&bytes[..8], b"12345\0\0\0");
        assert_eq!(&bytes[8..14], b"070701", "the newc magic");
    }
}
