//! Files that a person names: written whole or not at all.
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;

/// The name that stands for standard output.
pub const STANDARD_OUTPUT: &str = "-";

/// Checks that a file can be written, without changing it.
///
/// Errors: its folder does not exist, or neither it nor the folder can be written.
pub fn check_writable(path: &Path) -> anyhow::Result<()> {
    let check = || -> io::Result<()> {
        match path.metadata() {
            _ if path == Path::new(STANDARD_OUTPUT) => Ok(()),
            Ok(metadata) if !metadata.is_file() => OpenOptions::new().write(true).open(path).map(drop),
            _ => tempfile::tempfile_in(folder_of(path)).map(drop),
        }
    };
    check().with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a file, so that a reader sees the old content or the new one. `-` is standard output. What is no regular
/// file, such as a pipe or `/dev/stdout`, is written to as it is.
///
/// Errors: those of the file system. Then the old content is still there.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_as(path, bytes, None)
}

/// As [`write`]. With `mode`, a regular file has these rights from the moment that it has its content.
pub(crate) fn write_as(path: &Path, bytes: &[u8], mode: Option<u32>) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        if path == Path::new(STANDARD_OUTPUT) {
            let mut output = io::stdout().lock();
            output.write_all(bytes)?;
            return output.flush();
        }
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return OpenOptions::new().write(true).open(path)?.write_all(bytes);
        }
        // If the path is a link, the file that it leads to is replaced, and the link stays.
        let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut builder = tempfile::Builder::new();
        // The umask is applied to it; a file that is there keeps its rights.
        builder.permissions(Permissions::from_mode(0o666));
        let mut temporary = builder.tempfile_in(folder_of(&target))?;
        temporary.write_all(bytes)?;
        let old = || target.metadata().ok().map(|metadata| metadata.permissions());
        if let Some(rights) = mode.map(Permissions::from_mode).or_else(old) {
            temporary.as_file().set_permissions(rights)?;
        }
        temporary.as_file().sync_all()?;
        temporary.persist(&target)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Reads at most `limit` bytes of a regular file. `None` if there is no file.
///
/// Errors: it is no regular file, or cannot be read.
pub(crate) fn read_start(path: &Path, limit: u64) -> anyhow::Result<Option<Vec<u8>>> {
    let read = || -> io::Result<Option<Vec<u8>>> {
        match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Ok(metadata) if !metadata.is_file() => return Err(io::Error::other("not a regular file")),
            _ => {}
        }
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(File::open(path)?, limit), &mut bytes)?;
        Ok(Some(bytes))
    };
    read().with_context(|| path.display().to_string())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_rights_and_its_links() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("f"), folder.path().join("l"));
        write(&file, b"one").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        check_writable(&link).unwrap();
        write(&link, b"two").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert!(link.is_symlink());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file stays");
    }

    #[test]
    fn what_cannot_be_written_is_named_and_a_device_stays_a_device() {
        for path in ["/no/such/f", "/dev"] {
            let path = Path::new(path);
            assert!(format!("{:#}", check_writable(path).unwrap_err()).contains(path.to_str().unwrap()));
            assert!(write(path, b"x").is_err());
        }
        check_writable(Path::new("/dev/null")).unwrap();
        write(Path::new("/dev/null"), b"x").unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }

    #[test]
    fn nothing_is_checked_by_making_a_file() {
        let folder = tempfile::tempdir().unwrap();
        check_writable(&folder.path().join("f")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
