//! Servers that people run, from `tests/apps/`, each with its own books: a line in a file when a request
//! begins, a line before it ends. The order of the lines is the order in which it happened.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::process;
use crate::support::server::Server;

/// A running server and where its books are.
pub(crate) struct Outside {
    pub(crate) server: Server,
    pub(crate) name: &'static str,
}

/// What the books say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) begun: usize,
    pub(crate) in_progress: i64,
    pub(crate) peak: i64,
}

fn apps() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps")
}

/// A program of `tests/apps/.venv`.
fn venv(program: &str) -> Option<PathBuf> {
    let path = apps().join(".venv/bin").join(program);
    (path.exists() && apps().join(".venv/done").exists()).then_some(path)
}

/// A Python client of `tests/apps`; `None` when `tests/apps/setup` has not run.
pub(crate) fn client(name: &str) -> Option<Command> {
    let mut command = Command::new(venv("python")?);
    command.arg(apps().join(name));
    command.stdin(Stdio::null());
    Some(command)
}

/// Why the Python servers and clients cannot run.
pub(crate) const NO_VENV: &str = "tests/apps/setup has not been run";

impl Counted {
    /// What the books of a file say so far.
    pub(crate) fn of(books: &Path) -> Self {
        let mut counted = Self::default();
        for line in std::fs::read_to_string(books).unwrap_or_default().lines() {
            if line.starts_with('+') {
                counted.begun += 1;
                counted.in_progress += 1;
                counted.peak = counted.peak.max(counted.in_progress);
            } else {
                counted.in_progress -= 1;
            }
        }
        counted
    }
}

impl Outside {
    /// gunicorn with 4 synchronous workers: one request per process, no keep-alive.
    pub(crate) fn gunicorn() -> Option<Self> {
        let program = venv("gunicorn")?;
        let server = Server::start(|dir, port| {
            let mut command = Command::new(program);
            command.args(["--workers=4", "--no-control-socket", "--backlog=2048"]);
            command.arg(format!("--bind=127.0.0.1:{port}")).arg("gunicorn_app:app");
            command.current_dir(apps()).env("BOOKS", dir.join("books"));
            command.env("PYTHONDONTWRITEBYTECODE", "1");
            command
        });
        Some(Self { server, name: "gunicorn" })
    }

    /// A Node server, with WebSockets.
    pub(crate) fn node() -> Option<Self> {
        if !process::installed("node") {
            return None;
        }
        let server = Server::start(|dir, port| {
            let mut command = Command::new("node");
            command.arg(apps().join("node_app.js")).arg(port.to_string());
            command.env("BOOKS", dir.join("books"));
            command
        });
        Some(Self { server, name: "node" })
    }

    pub(crate) fn grpcio() -> Option<Self> {
        let program = venv("python")?;
        let server = Server::start(|dir, port| {
            let mut command = Command::new(program);
            command.arg(apps().join("grpcio_app.py")).arg(port.to_string());
            command.env("BOOKS", dir.join("books")).env("PYTHONDONTWRITEBYTECODE", "1");
            command
        });
        Some(Self { server, name: "grpcio" })
    }

    /// nginx; its books have a line only for what it answered.
    pub(crate) fn nginx() -> Option<Self> {
        if !process::installed("nginx") {
            return None;
        }
        let server = Server::start(|dir, port| {
            let text = std::fs::read_to_string(apps().join("nginx.conf")).expect("it is there");
            let text = text.replace("DIR", dir.to_str().expect("UTF-8"));
            let text = text.replace("PORT", &port.to_string());
            std::fs::write(dir.join("nginx.conf"), text).expect("writes");
            std::fs::write(dir.join("slow"), vec![b'x'; 4_000]).expect("writes");
            std::fs::write(dir.join("file"), vec![b'x'; 3_000_000]).expect("writes");
            for (path, mode) in
                [(dir.to_path_buf(), 0o755), (dir.join("slow"), 0o644), (dir.join("file"), 0o644)]
            {
                use std::os::unix::fs::PermissionsExt;
                let mode = std::fs::Permissions::from_mode(mode); // its worker is not root
                std::fs::set_permissions(path, mode).expect("ours");
            }
            let mut command = Command::new("nginx");
            command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf"));
            command
        });
        Some(Self { server, name: "nginx" })
    }

    pub(crate) fn address(&self) -> String {
        self.server.address()
    }

    pub(crate) fn port(&self) -> u16 {
        self.server.port
    }

    /// The lines of the books so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.server.dir.path().join("books"));
        text.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    pub(crate) fn counted(&self) -> Counted {
        Counted::of(&self.server.dir.path().join("books"))
    }

    /// nginx's own word on its connections, without the one on which it is asked.
    pub(crate) fn active_connections(&self) -> u64 {
        let mut curl = Command::new("curl");
        curl.args(["-s", "http://status/", "--unix-socket"]);
        let output = curl.arg(self.server.dir.path().join("status.sock")).output().expect("curl");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let active = said.strip_prefix("Active connections: ");
        let active = active.and_then(|rest| rest.split_whitespace().next());
        active.map_or(0, |active| active.parse::<u64>().expect("a number") - 1)
    }
}

/// Runs a client to its end; answers what it said.
#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    said.into_owned()
}
