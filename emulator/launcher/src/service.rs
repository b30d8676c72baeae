//! A backend as a service: a socket folder that no other backend uses, and a message to the service manager.
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use anyhow::{Context as _, anyhow, ensure};
use nix::fcntl::{Flock, FlockArg};

use crate::{backend::socket_path, topology::Topology};

/// A folder of sockets that this process alone uses.
#[derive(Debug)]
pub struct ServeFolder {
    _lock: Flock<File>,
}

impl ServeFolder {
    /// Whether a backend uses the folder now.
    ///
    /// Errors: it cannot be opened.
    pub fn is_in_use(folder: &Path) -> anyhow::Result<bool> {
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.with_context(|| folder.display().to_string())?,
        };
        Ok(Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
    }

    /// Takes the folder, which is made if it is not there, and removes the sockets of a backend that ended without
    /// removing them.
    ///
    /// Errors: another backend uses the folder, others may write to it, or it cannot be made.
    pub fn take(folder: &Path, topology: &Topology) -> anyhow::Result<Self> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.with_context(|| format!("cannot make the folder {}", folder.display()))?,
        }
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(folder);
        let file = file.with_context(|| folder.display().to_string())?;
        let metadata = file.metadata()?;
        // A user who can enter the folder can drive the devices. One who can write to it can replace a socket.
        ensure!(
            metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & 0o022 == 0,
            "{} belongs to somebody else, or others may write to it: use a folder of your own, with mode 700",
            folder.display()
        );
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => {
                anyhow!("another backend uses {}: stop it, or choose another --socket-dir", folder.display())
            }
            errno => anyhow!("cannot lock {}: {errno}", folder.display()),
        })?;
        // No other backend has the lock, so no process listens on these sockets.
        for function in topology.functions() {
            let socket = socket_path(folder, function);
            if socket.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_socket()) {
                tracing::info!("removing {}: its backend ended without doing so", socket.display());
                std::fs::remove_file(&socket).with_context(|| format!("cannot remove {}", socket.display()))?;
            }
        }
        Ok(Self { _lock: lock })
    }
}

/// Gives the sockets their rights, and lets a group enter the folder.
///
/// Errors: there is no such group, or the rights cannot be changed.
pub fn set_rights<'a>(
    folder: &Path,
    sockets: impl Iterator<Item = &'a Path>,
    group: Option<&str>,
    mode: Option<u32>,
) -> anyhow::Result<()> {
    let group = match group {
        None => None,
        Some(name) => {
            let found = nix::unistd::Group::from_name(name).with_context(|| format!("--socket-group {name}"))?;
            Some(found.with_context(|| format!("--socket-group {name}: no such group"))?.gid)
        }
    };
    let mode = mode.unwrap_or(if group.is_some() { 0o660 } else { 0o600 });
    let set = |path: &Path, mode: u32| -> anyhow::Result<()> {
        let text = || format!("cannot change the rights of {}", path.display());
        // The group first: nobody else has its rights for a moment.
        nix::unistd::chown(path, None, group).with_context(text)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).with_context(text)
    };
    for socket in sockets {
        set(socket, mode)?;
    }
    if group.is_some() { set(folder, 0o710) } else { Ok(()) }
}

/// Tells the service manager that the service is ready (sd_notify(3)), if one asked for it.
pub fn ready() {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = notify(Path::new(&address), b"READY=1") {
        tracing::warn!("cannot notify the service manager at {}: {error}", Path::new(&address).display());
    }
}

fn notify(address: &Path, message: &[u8]) -> io::Result<()> {
    let bytes = address.as_os_str().as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology;

    #[test]
    fn a_folder_is_used_by_one_backend_and_what_a_killed_one_left_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("s");
        let folder = folder.as_path();
        std::fs::create_dir(folder).unwrap();
        let topology = Topology::parse("t", topology::DEFAULT).unwrap();
        let function = topology.functions().next().unwrap();
        let socket = socket_path(folder, function);
        // Dropped without being removed, as by SIGKILL.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let first = ServeFolder::take(folder, &topology).unwrap();
        assert!(!socket.exists());
        let refused = ServeFolder::take(folder, &topology).unwrap_err();
        assert!(refused.to_string().contains("another backend"), "{refused}");
        drop(first);
        std::fs::write(&socket, "a person's file").unwrap();
        ServeFolder::take(folder, &topology).unwrap();
        assert!(socket.exists(), "only sockets are removed");
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(ServeFolder::take(folder, &topology).unwrap_err().to_string().contains("mode 700"));
    }

    #[test]
    fn a_group_may_connect_and_nobody_else() {
        let base = tempfile::tempdir().unwrap();
        let socket = base.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let rights = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let set = |group, mode| set_rights(base.path(), std::iter::once(socket.as_path()), group, mode);
        set(None, None).unwrap();
        assert_eq!(rights(&socket), 0o600);
        let folder = rights(base.path());
        set(None, Some(0o666)).unwrap();
        assert_eq!((rights(&socket), rights(base.path())), (0o666, folder));
        let own = nix::unistd::Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
        set(Some(&own.name), None).unwrap();
        assert_eq!((rights(&socket), rights(base.path())), (0o660, 0o710));
        assert_eq!(socket.metadata().unwrap().gid(), own.gid.as_raw());
        assert!(set(Some("no-such-group"), None).unwrap_err().to_string().contains("no such group"));
    }

    #[test]
    fn the_service_manager_is_told_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("svadev-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (manager, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}").into()),
        ] {
            notify(&address, b"READY=1").unwrap();
            let mut bytes = [0; 16];
            let n = manager.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..n], b"READY=1");
        }
        assert!(notify(Path::new("/no/such/socket"), b"x").is_err());
    }
}
