//! The control socket's file: mode 0600 from its first moment, replaced when its owner is dead,
//! removed at exit.
//!
//! The socket is bound inside a fresh directory that only this user may enter, gets its mode there,
//! and is then renamed to its place, so that nobody can connect before the mode holds.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The listening control socket. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) listener: UnixListener,
    pub(super) file: SocketFile,
}

/// The file of a listening socket, removed when dropped if it is still ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

/// Listen on `path`. The directory is created if it is missing, for this user alone.
pub(super) fn bind(path: &Path) -> io::Result<Control> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    check_owner(directory)?;
    check_free(path)?;

    let nursery = directory.join(format!(".{}", std::process::id()));
    // Of a process with our id that was killed right here.
    let _ = fs::remove_dir_all(&nursery);
    DirBuilder::new().mode(0o700).create(&nursery)?;
    let bound = bind_in(&nursery, path);
    let _ = fs::remove_dir_all(&nursery);
    bound
}

fn bind_in(nursery: &Path, path: &Path) -> io::Result<Control> {
    let newborn = nursery.join("s");
    let listener = UnixListener::bind(&newborn)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(&newborn, Permissions::from_mode(0o600))?;
    let metadata = fs::symlink_metadata(&newborn)?;
    fs::rename(&newborn, path)?;
    let file = SocketFile { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) };
    Ok(Control { listener, file })
}

/// In a directory that somebody else owns and that everybody may write to, such as a name under
/// `/tmp` taken before us, the socket could be exchanged for another.
fn check_owner(directory: &Path) -> io::Result<()> {
    let metadata = fs::metadata(directory)?;
    let me = rustix::process::geteuid().as_raw();
    let trusted = metadata.uid() == me || metadata.uid() == 0;
    let sticky = metadata.mode() & 0o1000 != 0;
    let open = metadata.mode() & 0o002 != 0;
    if trusted && (!open || sticky) {
        return Ok(());
    }
    let problem =
        format!("the directory {} belongs to somebody else or is open to all", directory.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
}

/// Nothing is there, or a socket nobody listens on any more.
fn check_free(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.file_type().is_socket() {
        let problem = "something that is no socket is there, and is left alone";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "a process answers there")),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_for_its_owner_alone_and_gone_afterwards() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("new/control.sock");
        let control = bind(&path).expect("bound");
        assert_eq!(fs::metadata(&path).expect("is there").mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path().join("new")).expect("is there").count(), 1);
        UnixStream::connect(&path).expect("answers");
        drop(control);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control.sock");
        drop(UnixListener::bind(&path).expect("bound"));
        assert!(path.exists(), "left behind by a dead process");
        let _first = bind(&path).expect("replaces it");
        let error = bind(&path).expect_err("a process answers");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_file_in_the_way_and_a_successor_are_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control.sock");
        fs::write(&path, "precious").expect("written");
        bind(&path).expect_err("no socket");
        assert_eq!(fs::read_to_string(&path).expect("is there"), "precious");
        fs::remove_file(&path).expect("removed");

        let first = bind(&path).expect("bound");
        fs::remove_file(&path).expect("removed by hand");
        let _second = bind(&path).expect("bound");
        drop(first);
        assert!(path.exists(), "the second's");
    }
}
