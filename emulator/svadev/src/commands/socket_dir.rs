//! The folder of `serve`'s sockets.
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use svadev_launcher::exit::{Exit, OrExit as _, Outcome};

/// The folder of `serve`'s sockets unless one is given.
pub(crate) fn socket_dir(choice: Option<&Path>, name: Option<&str>) -> Outcome<PathBuf> {
    if let Some(path) = choice {
        return std::path::absolute(path)
            .with_context(|| format!("--socket-dir {}", path.display()))
            .or_exit(Exit::Usage);
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = runtime.context("XDG_RUNTIME_DIR is not set: use --socket-dir").or_exit(Exit::Usage)?;
    Ok(base.join(name.map_or_else(|| "svadev".into(), |name| format!("svadev-{name}"))))
}
