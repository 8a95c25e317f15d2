//! Where the control socket is, for the gateway and for the commands that talk to it.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// Where a package or a pod has the control socket.
const SYSTEM: &str = "/run/tidegate";

const SOCKET: &str = "control.sock";

/// As in the table of settings; a test compares them.
pub(super) const DEFAULT_ADMIN: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15820));

/// The control socket of a gateway of this user: flag, `TIDEGATE_CONTROL`, default.
pub fn control_path(
    flag: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> PathBuf {
    let mut runtime_dir = None;
    let mut named = None;
    for (name, value) in environment {
        match name.to_str() {
            Some("TIDEGATE_CONTROL") => named = Some(PathBuf::from(value)),
            Some("XDG_RUNTIME_DIR") => runtime_dir = Some(PathBuf::from(value)),
            _ => {}
        }
    }
    flag.map(Path::to_owned).or(named).unwrap_or_else(|| default_control(runtime_dir))
}

/// The control socket a command should talk to: where this user would have one of its own, unless there is
/// none and the system's place is taken; whoever may not ask there is to be told that.
pub fn control_to_ask(
    flag: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> PathBuf {
    let environment: Vec<_> = environment.into_iter().collect();
    let named = flag.is_some() || environment.iter().any(|(name, _)| name == "TIDEGATE_CONTROL");
    let own = control_path(flag, environment);
    let system = Path::new(SYSTEM);
    if named || own.exists() || !system.exists() { own } else { system.join(SOCKET) }
}

/// The admin address a command should ask first: `TIDEGATE_ADMIN`, default.
pub fn admin_address(environment: impl IntoIterator<Item = (OsString, OsString)>) -> SocketAddr {
    let named = environment.into_iter().find(|(name, _)| name == "TIDEGATE_ADMIN");
    named.and_then(|(_, value)| value.to_str()?.parse().ok()).unwrap_or(DEFAULT_ADMIN)
}

/// `/run/tidegate` for those who may write there, else the user's runtime directory, else a
/// directory of the user's own under `/tmp`. Nothing is created here.
pub(super) fn default_control(runtime_dir: Option<PathBuf>) -> PathBuf {
    let writable = |path: &Path| access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    let system = Path::new(SYSTEM);
    let usable = if system.exists() { writable(system) } else { writable(Path::new("/run")) };
    let directory = match runtime_dir.filter(|dir| dir.is_absolute() && writable(dir)) {
        _ if usable => system.to_owned(),
        Some(dir) => dir.join("tidegate"),
        None => PathBuf::from(format!("/tmp/tidegate-{}", rustix::process::geteuid().as_raw())),
    };
    directory.join(SOCKET)
}
