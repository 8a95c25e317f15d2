//! A server that people run, as a child process in a directory of its own.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command};

use super::{SOON, process, until};

/// Dropping it kills it.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) dir: tempfile::TempDir,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // At the first PostgreSQL ends at once, its children too; the second is for the others, which
        // may have inherited that the first is ignored.
        for signal in [rustix::process::Signal::QUIT, rustix::process::Signal::TERM] {
            process::signal(self.child.id(), signal);
        }
        until("the server has gone", SOON, || {
            self.child.try_wait().is_ok_and(|status| status.is_some())
        });
    }
}

impl Server {
    /// Starts what `command` makes of a directory and a port, and waits until it listens.
    pub(crate) fn start(command: impl FnOnce(&Path, u16) -> Command) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        Self::start_at(port, command)
    }

    /// The same, on a port that is free.
    pub(crate) fn start_at(port: u16, command: impl FnOnce(&Path, u16) -> Command) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = command(dir.path(), port);
        let log = std::fs::File::create(dir.path().join("log")).expect("a log file");
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        let server = Self { child: command.spawn().expect("the server runs"), port, dir };
        until("the server listens", SOON, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}
