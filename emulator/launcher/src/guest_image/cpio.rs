//! An initial RAM disk: a cpio archive in the *newc* format (Linux,
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! It is not compressed: QEMU hands it over by DMA, and an emulated CPU takes longer to unpack it than it saves.
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, bail};
use cpio::newc::{Builder, ModeFileType, trailer};

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Folder,
    /// A copy of a host file.
    HostFile {
        source: PathBuf,
        mode: u32,
    },
    Bytes {
        bytes: Vec<u8>,
        mode: u32,
    },
    Link {
        target: String,
    },
    CharacterDevice {
        major: u32,
        minor: u32,
    },
}

/// An archive under construction. Paths are absolute guest paths. Missing parent folders are added.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    /// By path without the leading `/`: in this order a folder precedes what is in it.
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A folder.
    pub(crate) fn folder(&mut self, path: &str) -> anyhow::Result<()> {
        let key = self.prepare(path)?;
        self.entries.entry(key).or_insert(Entry::Folder);
        Ok(())
    }

    /// A copy of a file of the host, with permission bits; replaces what was there.
    pub(crate) fn host_file(&mut self, path: &str, source: &Path, mode: u32) -> anyhow::Result<()> {
        self.put(path, Entry::HostFile { source: source.to_owned(), mode })
    }

    /// A file with these bytes.
    pub(crate) fn bytes(&mut self, path: &str, bytes: Vec<u8>, mode: u32) -> anyhow::Result<()> {
        self.put(path, Entry::Bytes { bytes, mode })
    }

    /// A symbolic link, unless something is there already.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> anyhow::Result<()> {
        let key = self.prepare(path)?;
        self.entries.entry(key).or_insert_with(|| Entry::Link { target: target.to_owned() });
        Ok(())
    }

    /// A character device.
    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) -> anyhow::Result<()> {
        self.put(path, Entry::CharacterDevice { major, minor })
    }

    /// Whether there is anything at a path.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path.trim_start_matches('/'))
    }

    fn put(&mut self, path: &str, entry: Entry) -> anyhow::Result<()> {
        let key = self.prepare(path)?;
        if matches!(self.entries.get(&key), Some(Entry::Folder)) {
            bail!("cannot put a file at {path}: it is a folder in the guest's image");
        }
        self.entries.insert(key, entry);
        Ok(())
    }

    /// The key of a path, after its folders were made.
    fn prepare(&mut self, path: &str) -> anyhow::Result<String> {
        let mut parts = Vec::new();
        for component in Path::new(path).components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(part) => parts.push(part.to_str().context("the file name is not UTF-8")?),
                Component::ParentDir | Component::Prefix(_) => bail!("{path}: a path in the guest must not contain .."),
            }
        }
        for end in 1..parts.len() {
            match self.entries.entry(parts[..end].join("/")).or_insert(Entry::Folder) {
                Entry::Folder => {}
                _ => bail!("{path}: /{} is not a folder in the guest's image", parts[..end].join("/")),
            }
        }
        Ok(parts.join("/"))
    }

    /// Writes it all.
    pub(crate) fn write(&self, out: impl Write) -> anyhow::Result<()> {
        let mut out = BufWriter::new(out);
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            write_entry(&mut out, path, entry, number).with_context(|| format!("packing /{path}"))?;
        }
        trailer(&mut out)?;
        out.flush()?;
        Ok(())
    }
}

fn write_entry(out: &mut impl Write, path: &str, entry: &Entry, number: u32) -> anyhow::Result<()> {
    let builder = Builder::new(path).ino(number).nlink(1);
    match entry {
        Entry::Folder => {
            builder.nlink(2).mode(0o755).set_mode_file_type(ModeFileType::Directory).write(out, 0).finish()?;
        }
        Entry::HostFile { source, mode } => {
            let mut file = File::open(source).with_context(|| source.display().to_string())?;
            let size = u32::try_from(file.metadata()?.len())
                .context("the file is too large for an initial RAM disk (4 GiB)")?;
            let mut writer = builder.mode(*mode).set_mode_file_type(ModeFileType::Regular).write(out, size);
            let copied = io::copy(&mut io::Read::take(&mut file, u64::from(size)), &mut writer)?;
            if copied != u64::from(size) {
                bail!("{} changed while it was being read", source.display());
            }
            writer.finish()?;
        }
        Entry::Bytes { bytes, mode } => {
            let size = u32::try_from(bytes.len()).context("the file is too large for an initial RAM disk (4 GiB)")?;
            let mut writer = builder.mode(*mode).set_mode_file_type(ModeFileType::Regular).write(out, size);
            writer.write_all(bytes)?;
            writer.finish()?;
        }
        Entry::Link { target } => {
            let size = u32::try_from(target.len()).context("the link target is too long")?;
            let mut writer = builder.mode(0o777).set_mode_file_type(ModeFileType::Symlink).write(out, size);
            writer.write_all(target.as_bytes())?;
            writer.finish()?;
        }
        Entry::CharacterDevice { major, minor } => {
            let builder = builder.mode(0o600).set_mode_file_type(ModeFileType::Char);
            builder.rdev_major(*major).rdev_minor(*minor).write(out, 0).finish()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything in an archive: path, mode, content.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(bytes).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            io::Read::read_to_end(&mut reader, &mut content).unwrap();
            found.push((name, mode, content));
            bytes = reader.finish().unwrap();
        }
    }

    #[test]
    fn folders_precede_what_is_in_them() {
        let mut archive = Archive::new();
        archive.bytes("/a/b/file", b"hello".to_vec(), 0o644).unwrap();
        archive.character_device("/dev/console", 5, 1).unwrap();
        archive.link("/a/link", "b/file").unwrap();
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let got = read(&bytes);
        let names: Vec<_> = got.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
        let want = [
            ("a", 0o040_755),
            ("a/b", 0o040_755),
            ("a/b/file", 0o100_644),
            ("a/link", 0o120_777),
            ("dev", 0o040_755),
            ("dev/console", 0o020_600),
        ];
        assert_eq!(names, want);
        assert_eq!(got[2].2, b"hello");
        assert_eq!(got[3].2, b"b/file");
    }

    #[test]
    fn a_link_does_not_replace_a_file_and_a_file_replaces_a_link() {
        let mut archive = Archive::new();
        archive.bytes("/bin/false", vec![1], 0o755).unwrap();
        archive.link("/bin/false", "busybox").unwrap();
        archive.link("/bin/true", "busybox").unwrap();
        archive.bytes("/bin/true", vec![2], 0o755).unwrap();
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let got = read(&bytes);
        assert_eq!((got[1].2.as_slice(), got[2].2.as_slice()), (&[1][..], &[2][..]));
    }

    #[test]
    fn impossible_paths_are_refused() {
        let mut archive = Archive::new();
        archive.bytes("/a", vec![], 0o644).unwrap();
        assert!(archive.bytes("/a/b", vec![], 0o644).is_err());
        assert!(archive.bytes("/x/../y", vec![], 0o644).is_err());
        archive.folder("/d").unwrap();
        assert!(archive.bytes("/d", vec![], 0o644).is_err());
    }
}
