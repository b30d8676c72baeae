//! Finds and checks QEMU, and starts child processes that do not outlive us.
#![allow(unsafe_code, reason = "the child's own half between fork and exec")]
use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

use crate::exit::{Exit, OrExit as _, Outcome};

/// `vfio-user-pci` came with this version.
const OLDEST: (u32, u32) = (10, 1);
/// What is tested.
const RECOMMENDED: (u32, u32) = (11, 0);
/// The program's name in PATH.
const NAME: &str = "qemu-system-x86_64";

/// Makes the kernel kill the child when this process dies, for whatever reason.
///
/// The signal is tied to the thread that starts the child: only the main thread, which lives as long as the process,
/// may start one.
pub fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec the closure makes two system calls, on no memory of the parent's but a copied
    // integer. It allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            // The parent may have died before the call: then its signal never comes.
            if nix::unistd::getppid() != parent {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        });
    }
}

/// The program that the user named with `--qemu`, checked: new enough, and with vfio-user.
pub fn users_qemu(choice: &Path) -> Outcome<PathBuf> {
    let path = if choice == Path::new("host") {
        find_in_path(NAME)
            .with_context(|| format!("--qemu host: {NAME} is not in PATH: install QEMU, or omit --qemu"))
            .or_exit(Exit::Setup)?
    } else {
        choice.to_owned()
    };
    check(&path).with_context(|| format!("--qemu {}", path.display())).or_exit(Exit::Setup)?;
    Ok(path)
}

/// A program in PATH.
pub fn find_in_path(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let runs =
        |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(runs)
}

fn check(path: &Path) -> anyhow::Result<()> {
    let output = output_of(path, &["--version"])?;
    let version = parse_version(&output).with_context(|| {
        format!("not a QEMU binary: --version prints {:?}", output.lines().next().unwrap_or_default())
    })?;
    let (major, minor) = version;
    ensure!(
        version >= OLDEST,
        "QEMU {major}.{minor} has no vfio-user: {}.{} is the oldest supported version",
        OLDEST.0,
        OLDEST.1
    );
    if version < RECOMMENDED {
        note!("QEMU {major}.{minor} may work, but is untested: use {} or later", RECOMMENDED.0);
    }
    ensure!(
        output_of(path, &["-device", "help"])?.contains("\"vfio-user-pci\""),
        "this QEMU was built without vfio-user-pci (configure option vfio_user_client)"
    );
    Ok(())
}

fn output_of(path: &Path, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(path);
    command.args(args).stdin(std::process::Stdio::null());
    die_with_parent(&mut command);
    let output = command.output()?;
    if !output.status.success() {
        bail!("{} {}: {}", args.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Major and minor number in `QEMU emulator version 11.1.3 (Debian …)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let numbers = text.strip_prefix("QEMU emulator version ")?;
    let mut parts = numbers.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse_version("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)\nCopyright"), Some((11, 1)));
        assert_eq!(parse_version("QEMU emulator version 10.0.50"), Some((10, 0)));
        assert_eq!(parse_version("GNU bash, version 5"), None);
        assert!((10, 1) >= OLDEST && (10, 0) < OLDEST && (9, 9) < OLDEST);
    }

    #[test]
    fn a_program_that_is_not_qemu_is_named() {
        let failure = users_qemu(Path::new("/bin/true")).unwrap_err();
        assert_eq!(failure.exit, Exit::Setup);
        assert!(failure.to_string().contains("--qemu /bin/true"), "{failure}");
    }

    #[test]
    fn a_child_dies_with_the_thread_that_started_it() {
        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("600");
            die_with_parent(&mut command);
            command.spawn().unwrap()
        })
        .join()
        .unwrap();
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
