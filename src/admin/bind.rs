//! Opening the four faces before anything starts, so that what is in use is known at once.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use super::control::{self, Control};
use crate::io::listen;

/// Where the faces are to be.
#[derive(Clone, Debug)]
pub struct Faces {
    /// `--admin`
    pub admin: SocketAddr,
    /// `--probe`
    pub probe: SocketAddr,
    /// `--metrics`
    pub metrics: SocketAddr,
    /// `--control`
    pub control: PathBuf,
}

/// The faces, listening but not yet served.
#[derive(Debug)]
pub struct Bound {
    pub(super) admin: TcpListener,
    pub(super) probe: TcpListener,
    pub(super) metrics: TcpListener,
    pub(super) control: Control,
    without_ipv6: bool,
}

/// One face that cannot be opened, and the flag that moves it elsewhere.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {place} (--{flag}): {source}{}", Advice(.flag, .source))]
pub struct BindError {
    flag: &'static str,
    place: String,
    source: io::Error,
}

struct Advice<'a>(&'a str, &'a io::Error);

/// Whether a control socket could be opened in the directory of `path`. Leaves nothing there, and
/// does not touch `path` itself.
pub fn try_control(path: &Path) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let was_there = directory.exists();
    let tried = control::bind(&directory.join(format!(".try-{}", std::process::id()))).map(drop);
    if !was_there {
        // Fails, as it should, if somebody has put something there meanwhile.
        let _ = std::fs::remove_dir(directory);
    }
    tried
}

/// Open all four, or say of each that failed why.
pub fn bind(faces: &Faces) -> Result<Bound, Vec<BindError>> {
    let (mut errors, mut without_ipv6) = (Vec::new(), false);
    let mut tcp = |flag, address: SocketAddr| {
        let bound = listen::open(address);
        bound
            .inspect(|socket| without_ipv6 |= listen::fell_back(address, socket))
            .map(TcpListener::from)
            .map_err(|source| errors.push(BindError { flag, place: address.to_string(), source }))
            .ok()
    };
    let listeners =
        [tcp("admin", faces.admin), tcp("probe", faces.probe), tcp("metrics", faces.metrics)];
    let control = control::bind(&faces.control).map_err(|source| {
        let place = faces.control.display().to_string();
        errors.push(BindError { flag: "control", place, source });
    });
    match (listeners, control) {
        ([Some(admin), Some(probe), Some(metrics)], Ok(control)) => {
            Ok(Bound { admin, probe, metrics, control, without_ipv6 })
        }
        _ => Err(errors),
    }
}

impl Bound {
    /// Whether a face was to be at `[::]`, and this machine has IPv4 alone.
    pub fn without_ipv6(&self) -> bool {
        self.without_ipv6
    }

    /// The address of `--admin` that was really bound.
    pub fn admin(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// The address of `--probe` that was really bound.
    pub fn probe(&self) -> io::Result<SocketAddr> {
        self.probe.local_addr()
    }

    /// The address of `--metrics` that was really bound.
    pub fn metrics(&self) -> io::Result<SocketAddr> {
        self.metrics.local_addr()
    }
}

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1.kind() {
            io::ErrorKind::AddrInUse => {
                write!(f, "; if another gateway runs here, give this one its own with --{}", self.0)
            }
            io::ErrorKind::PermissionDenied => {
                write!(f, "; name a place this user may use with --{}", self.0)
            }
            _ => Ok(()),
        }
    }
}
