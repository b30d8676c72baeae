//! VERSION: what both sides can do.
use std::fmt::Write;

use nix::errno::Errno;
use serde::Deserialize;
use svadev_spec::vfio_user::{DEFAULT_MAX_DATA_XFER_SIZE, VERSION_MAJOR, VERSION_MINOR, Version};

use super::{Reply, Session, fixed};
use crate::input::ProtocolError;

/// Most version data that is looked at, bytes. QEMU sends about 200.
const MAX_VERSION_DATA: usize = 4096;
/// Most DMA mappings that a client may make unless it is told otherwise (*vfio-user* "VFIO_USER_VERSION").
const DEFAULT_MAX_DMA_MAPS: u64 = 65535;
/// The only page size that DMA mappings are aligned to, bytes.
pub(super) const PAGE_SIZE: u64 = 4096;

#[derive(Default, Deserialize)]
struct VersionData {
    capabilities: Option<Capabilities>,
}

/// The client's proposal. Other names are ignored.
#[derive(Default, Deserialize)]
struct Capabilities {
    max_msg_fds: Option<u64>,
    max_data_xfer_size: Option<u64>,
    max_dma_maps: Option<u64>,
    pgsizes: Option<u64>,
    write_multiple: Option<bool>,
}

impl Session {
    pub(super) fn version(&mut self, payload: &[u8]) -> Result<Reply, ProtocolError> {
        if self.negotiated {
            return Ok(Err(Errno::EINVAL));
        }
        let (version, data) = match fixed::<Version>(payload) {
            Ok(v) => v,
            Err(errno) => return Ok(Err(errno)),
        };
        // "closes the connection if it cannot support the advertised version" (*vfio-user* "Connection Initiation").
        if version.major != VERSION_MAJOR {
            return Err(ProtocolError::Version(version.major));
        }
        let proposed = match parse(data) {
            Ok(p) => p,
            Err(errno) => return Ok(Err(errno)),
        };
        let theirs = proposed.max_data_xfer_size.unwrap_or(DEFAULT_MAX_DATA_XFER_SIZE.into());
        if theirs == 0 {
            return Ok(Err(Errno::EINVAL));
        }
        // "equal to or less than the minor version proposed": ours is 0, which every proposal reaches.
        self.put(&Version { major: VERSION_MAJOR, minor: VERSION_MINOR });
        let json = self.capabilities(&proposed, data.len());
        self.reply.extend_from_slice(json.as_bytes());
        self.negotiated = true;
        let ours = self.limits.max_data_xfer_size;
        self.shared.negotiated(u32::try_from(theirs).map_or(ours, |theirs| theirs.min(ours)));
        Ok(Ok(Vec::new()))
    }

    /// Our capabilities, NUL included. What is worse than its default always goes out: a client that does not know it
    /// would send what we refuse. The rest is "a subset of those proposed" (*vfio-user* "VFIO_USER_VERSION"), and no
    /// longer than the proposal, since QEMU has room for no more. A client that proposes nothing gets all.
    fn capabilities(&self, proposed: &Capabilities, room: usize) -> String {
        const START: &str = "{\"capabilities\":{";
        const END: &str = "}}\0";
        let limits = &self.limits;
        let silent = room == 0;
        let room = if silent { MAX_VERSION_DATA } else { room };
        let (fds, size, maps) =
            (u64::from(limits.max_msg_fds), u64::from(limits.max_data_xfer_size), u64::from(limits.max_dma_maps));
        // Name, value, whether it is worse than its default, whether it was proposed.
        let numbers = [
            ("max_msg_fds", fds, false, proposed.max_msg_fds.is_some()),
            (
                "max_data_xfer_size",
                size,
                size < DEFAULT_MAX_DATA_XFER_SIZE.into(),
                proposed.max_data_xfer_size.is_some(),
            ),
            ("max_dma_maps", maps, maps < DEFAULT_MAX_DMA_MAPS, proposed.max_dma_maps.is_some()),
            ("pgsizes", PAGE_SIZE, false, proposed.pgsizes.is_some()),
        ];
        let mut json = String::from(START);
        let mut put = |entry: &str, must: bool| {
            let before = json.len();
            let comma = if before == START.len() { "" } else { "," };
            let _ = write!(json, "{comma}{entry}");
            if json.len() + END.len() > room && !must {
                json.truncate(before);
            }
        };
        for must in [true, false] {
            for (name, value, worse, wanted) in numbers {
                if worse == must && (worse || wanted || silent) {
                    put(&format!("\"{name}\":{value}"), must);
                }
            }
        }
        if proposed.write_multiple == Some(true) {
            put("\"write_multiple\":true", false);
        }
        if json.len() == START.len() && START.len() + END.len() > room {
            return String::new();
        }
        json + END
    }
}

/// Version data: optional, JSON, ended by NUL.
fn parse(data: &[u8]) -> Result<Capabilities, Errno> {
    if data.is_empty() {
        return Ok(Capabilities::default());
    }
    let end = data.iter().take(MAX_VERSION_DATA).position(|&b| b == 0).ok_or(Errno::EINVAL)?;
    let data: VersionData = serde_json::from_slice(&data[..end]).map_err(|_| Errno::EINVAL)?;
    Ok(data.capabilities.unwrap_or_default())
}
