//! In which network namespace rules are about to be changed: never in the wrong one.
//!
//! Always true: where a pod shares the machine's network, and where a person has not said which
//! namespace it is, nothing is changed.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is known about where this process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a pod, which has these addresses, on a machine with those.
    Pod {
        /// `status.podIPs`
        pod: Vec<IpAddr>,
        /// `status.hostIPs`
        host: Vec<IpAddr>,
    },
    /// Where a person says.
    Named(String),
}

/// Why this is not the place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// `hostNetwork: true`
    #[error(
        "the pod's address {0} is the machine's own: the pod uses the host's network, and the rules would capture the whole machine's traffic; use `tidegate run --listen` there"
    )]
    HostNetwork(IpAddr),
    /// The address is not here.
    #[error(
        "none of the pod's addresses ({0}) is in this network namespace: this is not the pod's network"
    )]
    NotThePod(String),
    /// It is another one.
    #[error(
        "this is the network namespace {here}, not {named} ({there}); go there first, such as with `ip netns exec NAME` or `nsenter --net=PATH`"
    )]
    Elsewhere {
        /// `net:[…]` of this process.
        here: String,
        /// What was said.
        named: String,
        /// What that is.
        there: String,
    },
    /// It cannot be found out.
    #[error(
        "cannot find the network namespace {named}: {error}; name one of `ip netns`, a path such as /proc/PID/ns/net, `net:[…]` as `readlink /proc/self/ns/net` shows it, or `host`"
    )]
    Unknown {
        /// What was said.
        named: String,
        /// Why it is none.
        error: io::Error,
    },
}

const HERE: &str = "/proc/self/ns/net";

/// Refuse, unless this is that place.
pub fn verify(place: &Place) -> Result<(), PlaceError> {
    match place {
        Place::Pod { pod, host } => verify_pod(pod, host, |ip| is_local((ip, 0).into())),
        Place::Named(named) => verify_named(named),
    }
}

/// Whether an address is one of this network namespace: a socket can be bound to it.
pub fn is_local(mut address: SocketAddr) -> bool {
    address.set_port(0);
    address.ip().is_loopback() || UdpSocket::bind(address).is_ok()
}

fn verify_pod(
    pod: &[IpAddr],
    host: &[IpAddr],
    is_local: impl Fn(IpAddr) -> bool,
) -> Result<(), PlaceError> {
    if let Some(shared) = pod.iter().find(|ip| host.contains(ip)) {
        return Err(PlaceError::HostNetwork(*shared));
    }
    if pod.iter().any(|ip| is_local(*ip)) {
        return Ok(());
    }
    let list: Vec<_> = pod.iter().map(IpAddr::to_string).collect();
    Err(PlaceError::NotThePod(list.join(", ")))
}

fn verify_named(named: &str) -> Result<(), PlaceError> {
    let unknown = |error| PlaceError::Unknown { named: named.to_owned(), error };
    let here = inode(Path::new(HERE)).map_err(unknown)?;
    let there = match named {
        "host" => inode(Path::new("/proc/1/ns/net")),
        path if path.starts_with('/') => inode(Path::new(path)),
        link if link.starts_with("net:[") => link["net:[".len()..]
            .strip_suffix(']')
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| io::ErrorKind::InvalidInput.into()),
        name if name.contains('/') || name.starts_with('.') => {
            Err(io::ErrorKind::InvalidInput.into())
        }
        name => inode(&Path::new("/run/netns").join(name)),
    };
    let there = there.map_err(unknown)?;
    if here == there {
        return Ok(());
    }
    let link = |number: u64| format!("net:[{number}]");
    let (here, there) = (link(here), link(there));
    Err(PlaceError::Elsewhere { here, named: named.to_owned(), there })
}

fn inode(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().expect("an address")).collect()
    }

    #[test]
    fn a_pod_that_shares_the_machines_network_is_refused() {
        let pod = ips(&["10.0.0.5", "fd00::5"]);
        let verify = |host: &[&str]| verify_pod(&pod, &ips(host), |_| true);
        verify(&["192.0.2.1"]).expect("a pod of its own");
        let refused = verify(&["192.0.2.1", "fd00::5"]).expect_err("shared").to_string();
        assert!(refused.contains("fd00::5") && refused.contains("--listen"), "{refused}");
        verify_pod(&pod, &[], |_| false).expect_err("not here");
    }

    #[test]
    fn a_namespace_is_named_and_has_to_be_this_one() {
        let here = inode(Path::new(HERE)).expect("there");
        for right in [HERE, &format!("net:[{here}]")] {
            verify_named(right).expect(right);
        }
        let elsewhere = verify_named("net:[1]").expect_err("elsewhere").to_string();
        assert!(elsewhere.contains(&here.to_string()), "{elsewhere}");
        for wrong in ["../../etc/passwd", "no-such-namespace", "net:[x]", "/no/such/path", ""] {
            let said = verify_named(wrong).expect_err(wrong).to_string();
            assert!(said.contains("cannot find") || said.contains("not "), "{said}");
        }
    }
}
