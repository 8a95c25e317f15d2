//! Probes and hooks, as the kubelet does them: from the node, or in the container.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::container::Process;
use crate::support::namespace::Space;

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    pub(super) fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// From where, and to whom.
pub(super) struct Way<'a> {
    pub(super) node: &'a Space,
    pub(super) address: IpAddr,
    pub(super) container: &'a Container,
    pub(super) process: &'a Process,
}

impl Way<'_> {
    /// One probe: why it failed, if it did.
    pub(super) fn probe(&self, probe: &Probe) -> Result<(), String> {
        let timeout = Duration::from_secs(probe.timeout_seconds.unwrap_or(1) as u64);
        if let Some(exec) = &probe.exec {
            return self.exec(exec.command.as_deref().unwrap_or_default());
        }
        if let Some(get) = &probe.http_get {
            return self.get(get, timeout);
        }
        if let Some(socket) = &probe.tcp_socket {
            let to = SocketAddr::new(self.address, self.port(&socket.port));
            let dialled = self.node.enter(|| TcpStream::connect_timeout(&to, timeout));
            return dialled.map(drop).map_err(|error| format!("{to}: {error}"));
        }
        panic!("the rig does not know the probe {probe:?}");
    }

    /// A hook, which may take as long as `patience`.
    pub(super) fn hook(&self, hook: &LifecycleHandler, patience: Duration) -> Result<(), String> {
        if let Some(exec) = &hook.exec {
            self.exec(exec.command.as_deref().unwrap_or_default())
        } else if let Some(get) = &hook.http_get {
            self.get(get, patience)
        } else if let Some(sleep) = &hook.sleep {
            std::thread::sleep(patience.min(Duration::from_secs(sleep.seconds as u64))); // what it is for
            Ok(())
        } else {
            panic!("the rig does not know the hook {hook:?}")
        }
    }

    fn exec(&self, words: &[String]) -> Result<(), String> {
        let output = self.process.exec(words);
        let said = [output.stdout, output.stderr].concat();
        let said = || format!("{words:?}: {}", String::from_utf8_lossy(&said));
        if output.status.success() { Ok(()) } else { Err(said()) }
    }

    fn get(&self, get: &HTTPGetAction, timeout: Duration) -> Result<(), String> {
        assert!(get.scheme.as_deref().unwrap_or("HTTP") == "HTTP", "the rig's probes speak no TLS");
        let host = get.host.as_ref().and_then(|host| host.parse().ok());
        let to = SocketAddr::new(host.unwrap_or(self.address), self.port(&get.port));
        let path = get.path.as_deref().unwrap_or("/");
        let headers = get.http_headers.iter().flatten();
        let headers: String =
            headers.map(|header| format!("{}: {}\r\n", header.name, header.value)).collect();
        let status = self.node.enter(|| status(to, path, &headers, timeout));
        match status {
            Ok(200..400) => Ok(()),
            Ok(status) => Err(format!("{to}{path}: {status}")),
            Err(error) => Err(format!("{to}{path}: {error}")),
        }
    }

    fn port(&self, port: &IntOrString) -> u16 {
        match port {
            IntOrString::Int(port) => *port as u16,
            IntOrString::String(name) => {
                let mut ports = self.container.ports.iter().flatten();
                let named = ports.find(|port| port.name.as_deref() == Some(name));
                named.unwrap_or_else(|| panic!("no port is called {name}")).container_port as u16
            }
        }
    }
}

/// The status of a GET whose answer was read to its end.
fn status(to: SocketAddr, path: &str, headers: &str, timeout: Duration) -> io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&to, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: kube-probe/1.36\r\n{headers}Connection: close\r\n\r\n"
    )?;
    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    answer.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    answer.read_to_end(&mut Vec::new())?;
    status.ok_or_else(|| io::Error::other(format!("no answer of HTTP: {line:?}")))
}
