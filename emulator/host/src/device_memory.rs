//! The files of the functions' device memory. They are sparse: a page takes memory of the host when it is first used.
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use svadev_accelerator::FunctionSettings;
use svadev_memory::DeviceMemory;

/// The memory of a device with these functions, and each function's file for its VMM.
pub(crate) fn make(functions: &[FunctionSettings]) -> anyhow::Result<(Arc<DeviceMemory>, Vec<Option<OwnedFd>>)> {
    let files = functions.iter().map(|settings| match settings.device_memory {
        0 => Ok(None),
        bytes => file(bytes).map(Some),
    });
    let files = files.collect::<anyhow::Result<Vec<_>>>()?;
    let mut parts = Vec::new();
    for (file, settings) in files.iter().zip(functions) {
        let file = file.as_ref().map(OwnedFd::try_clone).transpose().context("no descriptor is left")?;
        parts.push(file.map(|file| (file, settings.device_memory)));
    }
    let memory = DeviceMemory::new(parts).context("cannot map device memory")?;
    Ok((Arc::new(memory), files))
}

/// A file of zeros, sealed: nobody who gets it can shrink it under us.
fn file(bytes: u64) -> anyhow::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = memfd_create("svadev-device-memory", flags).context("cannot make the file of device memory")?;
    let len = i64::try_from(bytes).context("too much device memory")?;
    nix::unistd::ftruncate(&file, len).context("cannot size the file of device memory")?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).context("cannot seal the file of device memory")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use svadev_fabric::Bdf;
    use svadev_spec::mirror::device_address;

    use super::*;

    #[test]
    fn each_function_with_device_memory_has_a_file_and_a_place() {
        let function = |device_memory| FunctionSettings { device_memory, ..FunctionSettings::new(Bdf(0x28)) };
        let (memory, files) = make(&[function(1 << 20), function(0), function(0x1000)]).unwrap();
        assert_eq!(files.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!([0, 1, 2].map(|number| memory.size(number)), [1 << 20, 0, 0x1000]);
        assert!(memory.window(device_address(2, 0)).is_some());
        let file = files[0].as_ref().unwrap();
        assert!(nix::unistd::ftruncate(file, 0).is_err(), "sealed");
        let blocks = nix::sys::stat::fstat(file).unwrap().st_blocks;
        assert_eq!(blocks, 0, "sparse");
    }
}
