//! The oracle as a process of its own, for what can only be done to a process: kill -9, SIGSTOP.
//!
//! The test binary starts itself again and runs only [`application`], which does nothing unless it finds
//! in its environment where to listen.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use super::oracle::{Oracle, Script};
use super::{SOON, process, until};

const WHERE: &str = "TIDEGATE_TEST_APPLICATION";
const SCRIPT: &str = "TIDEGATE_TEST_SCRIPT";

/// A child process that plays one script. Dropping it kills it.
pub(crate) struct AppProcess {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl AppProcess {
    /// An application that echoes.
    pub(crate) fn echo() -> Self {
        Self::start(([127, 0, 0, 1], 0).into(), "echo")
    }

    /// One that answers requests of `ledger::Client`.
    pub(crate) fn work() -> Self {
        Self::start(([127, 0, 0, 1], 0).into(), "work")
    }

    pub(crate) fn start(address: SocketAddr, script: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let said = dir.path().join("address");
        let child = Command::new(std::env::current_exe().expect("our own path"))
            .args(["--exact", "support::app_process::application"])
            .env(WHERE, format!("{address} {}", said.display()))
            .env(SCRIPT, script)
            .stdout(Stdio::null())
            .spawn()
            .expect("our own binary runs");
        let mut address = None;
        until("the application listens", SOON, || {
            let text = std::fs::read_to_string(&said).unwrap_or_default();
            address = text.strip_suffix('\n').and_then(|text| text.parse().ok());
            address.is_some()
        });
        let address = address.expect("just read");
        Self { address, child }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        process::signal(self.child.id(), signal);
    }

    /// kill -9, and reaped.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for AppProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: the application's `main` when started by [`AppProcess`].
#[test]
fn application() {
    let Ok(told) = std::env::var(WHERE) else {
        return;
    };
    let (address, said) = told.split_once(' ').expect("an address and a file");
    let script = match std::env::var(SCRIPT).as_deref() {
        Ok("work") => Script::Work,
        _ => Script::Echo,
    };
    let oracle = Oracle::start_at(address.parse().expect("an address"), script);
    std::fs::write(said, format!("{}\n", oracle.address)).expect("the parent reads it");
    loop {
        std::thread::park(); // until killed
    }
}
