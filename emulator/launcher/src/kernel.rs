//! The kernel to boot, and the guest's module for it.
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::{
    exit::{Exit, Failure, OrExit as _, Outcome},
    guest_image::build::{self, ModuleTarget},
    kit::LazyKit,
};

/// A kernel to boot.
#[derive(Debug)]
pub struct Kernel {
    /// bzImage.
    pub image: PathBuf,
    /// `uname -r`.
    pub release: String,
    /// Build tree to build the guest's module in.
    pub kdir: Option<PathBuf>,
    /// Whether this is the kit's kernel with the kit's build tree.
    pub is_kits: bool,
}

/// The kernel that the user chose, else the kit's.
pub fn choose_kernel(choice: Option<&Path>, kdir: Option<&Path>, kit: &LazyKit) -> Outcome<Kernel> {
    let Some(choice) = choice else {
        let kit = kit.get()?;
        let (image, release) = (kit.kernel.clone(), kit.kernel_release.clone());
        return Ok(Kernel { image, release, kdir: kdir.map(Path::to_owned), is_kits: kdir.is_none() });
    };
    let locate = || -> anyhow::Result<Kernel> {
        let (image, tree) = if choice.is_dir() {
            (choice.join("arch/x86/boot/bzImage"), Some(choice.to_owned()))
        } else {
            (choice.to_owned(), None)
        };
        let release = bzimage_release(&image).with_context(|| image.display().to_string())?;
        let installed = || Some(Path::new("/lib/modules").join(&release).join("build")).filter(|tree| tree.exists());
        let kdir = kdir.map(Path::to_owned).or(tree).or_else(installed);
        Ok(Kernel { image, release, kdir, is_kits: false })
    };
    locate().with_context(|| format!("--kernel {}", choice.display())).or_exit(Exit::Setup)
}

/// The module for a kernel. Without a build tree it is an error if the module is needed, otherwise `None`.
pub fn find_module(kernel: &Kernel, kit: &LazyKit, needed: bool) -> Outcome<Option<PathBuf>> {
    if !kernel.is_kits && kernel.kdir.is_none() {
        let release = &kernel.release;
        let text = format!("there is no build tree for the kernel {release}: use --kdir");
        if needed {
            return Err(Failure::new(Exit::Setup, text));
        }
        note!("{text}; continuing without the driver");
        return Ok(None);
    }
    if kernel.is_kits {
        kit.get()?;
    }
    build::module(&ModuleTarget { release: kernel.release.clone(), kdir: kernel.kdir.clone() }).map(Some)
}

/// The release in a bzImage (Linux, `Documentation/arch/x86/boot.rst`: `header` at 0202h, `kernel_version` at 020Eh).
fn bzimage_release(path: &Path) -> anyhow::Result<String> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open(path)?;
    let mut header = [0; 0x210];
    let short = "not a bzImage: use arch/x86/boot/bzImage, or the build tree itself";
    file.read_exact_at(&mut header, 0).context(short)?;
    anyhow::ensure!(&header[0x202..0x206] == b"HdrS", short);
    // "a pointer to a NUL-terminated human-readable kernel version number string, less 0x200".
    let offset = u64::from(u16::from_le_bytes([header[0x20e], header[0x20f]])) + 0x200;
    let mut text = [0; 256];
    let count = file.read_at(&mut text, offset)?;
    let text = text[..count].split(|&byte| byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(text).context("the kernel version is not UTF-8")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bzimage_tells_its_release() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bzImage");
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x30d].copy_from_slice(b"7.3.4-x (me) ");
        std::fs::write(&path, &image).unwrap();
        assert_eq!(bzimage_release(&path).unwrap(), "7.3.4-x");
        std::fs::write(&path, b"\x7fELF").unwrap();
        assert!(bzimage_release(&path).unwrap_err().to_string().contains("arch/x86/boot/bzImage"));
        image[0x20e..0x210].copy_from_slice(&0xffff_u16.to_le_bytes());
        std::fs::write(&path, &image).unwrap();
        assert_eq!(bzimage_release(&path).unwrap(), "", "a pointer outside the file reads nothing");
    }
}
