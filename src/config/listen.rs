//! Where to listen, and which application stands behind it: `ADDR=APP`.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;

use crate::io::App;

use super::{Mistakes, Origin};

/// A listener as it was written.
#[derive(Clone, Debug)]
pub(super) struct ListenText {
    pub(super) address: String,
    pub(super) app: String,
    pub(super) origin: Origin,
}

/// A listener and its application.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    pub(super) listen: SocketAddr,
    pub(super) listen_text: String,
    pub(super) app_text: String,
    pub(super) apps: Vec<App>,
    pub(super) origin: Origin,
}

/// The kernel's `sun_path`, without the final zero.
pub(super) const MAX_UNIX_PATH: usize = 107;

impl ListenText {
    /// `ADDR=APP`, or a mistake.
    pub(super) fn split(text: &str, origin: Origin, mistakes: &mut Mistakes) -> Option<Self> {
        let Some((address, app)) = text.split_once('=') else {
            mistakes.add(
                "listen",
                Some(text),
                origin,
                "must be ADDR=APP such as `0.0.0.0:8080=127.0.0.1:3000`",
            );
            return None;
        };
        Some(Self { address: address.to_owned(), app: app.to_owned(), origin })
    }
}

/// Every listener that is right; what is wrong with the others is noted.
pub(super) fn parse_all(texts: Vec<ListenText>, mistakes: &mut Mistakes) -> Vec<Listener> {
    texts.into_iter().filter_map(|text| parse(text, mistakes)).collect()
}

fn parse(text: ListenText, mistakes: &mut Mistakes) -> Option<Listener> {
    let ListenText { address, app, origin } = text;
    let listen = address.parse::<SocketAddr>();
    if listen.is_err() {
        mistakes.add(
            "listen",
            Some(&address),
            &origin,
            "must be an IP address and a port such as `0.0.0.0:8080` or `[::]:8080`",
        );
    }
    let apps = parse_app(&app);
    if let Err(problem) = &apps {
        mistakes.add("listen", Some(&app), &origin, problem);
    }
    Some(Listener {
        listen: listen.ok()?,
        apps: apps.ok()?,
        listen_text: address,
        app_text: app,
        origin,
    })
}

/// `host:port` or `unix:/path`. A host name is asked for here, once, and may have several
/// addresses.
fn parse_app(text: &str) -> Result<Vec<App>, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return match path.len() {
            _ if !path.starts_with('/') => Err("must have an absolute path after `unix:`".into()),
            ..=MAX_UNIX_PATH => Ok(vec![App::Unix(PathBuf::from(path))]),
            _ => Err(format!("is too long: a socket's path has at most {MAX_UNIX_PATH} bytes")),
        };
    }
    if text.contains('/') {
        return Err("must be host:port or unix:/path: is `unix:` missing?".into());
    }
    let form = "must be host:port or unix:/path";
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(form.into());
    };
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    let port = match port.parse::<u16>() {
        Ok(port) if port != 0 && digits => port,
        _ => return Err(format!("{form}, with a port from 1 to 65535")),
    };
    if host.is_empty() {
        return Err(format!("{form}: the host is missing"));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(vec![App::Tcp(address)]);
    }
    // `[$(POD_IP)]:8080`: whoever writes it for a pod cannot know the family of its address.
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Some(ip) = bracketed.and_then(|host| host.parse::<IpAddr>().ok()) {
        return Ok(vec![App::Tcp(SocketAddr::new(ip, port))]);
    }
    if host.contains([':', '[', ' ']) {
        return Err(format!("{form}; an IPv6 address is written `[::1]:{port}`"));
    }
    match (host, port).to_socket_addrs() {
        Ok(found) => {
            let apps: Vec<_> = found.map(App::Tcp).collect();
            if apps.is_empty() {
                Err("has a host name without an address".into())
            } else {
                Ok(apps)
            }
        }
        Err(error) => Err(format!("has a host name that cannot be resolved: {error}")),
    }
}

/// Whether both addresses cannot be listened on at once. IPv4 and IPv6 wildcards may stand side by
/// side.
pub(super) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let wildcard =
        |a: SocketAddr, b: SocketAddr| a.ip().is_unspecified() && a.is_ipv4() == b.is_ipv4();
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || wildcard(a, b) || wildcard(b, a))
}

/// Whether dialling `app` from here would end at the listener on `listen`.
pub(super) fn dials_itself(listen: SocketAddr, app: SocketAddr) -> bool {
    let listen_ip = listen.ip().to_canonical();
    let app_ip = app.ip().to_canonical();
    listen.port() != 0
        && listen.port() == app.port()
        && (listen_ip == app_ip
            // The kernel takes "any address" to mean this machine.
            || app_ip.is_unspecified() && (listen_ip.is_unspecified() || listen_ip.is_loopback())
            || listen_ip.is_unspecified() && covers(listen_ip, app_ip) && is_ours(app_ip))
}

fn covers(wildcard: IpAddr, ip: IpAddr) -> bool {
    wildcard.is_ipv6() || ip.is_ipv4()
}

/// An address is this machine's own if a socket can be bound to it.
fn is_ours(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn applications_are_addresses_names_or_paths() {
        assert_eq!(parse_app("127.0.0.1:80"), Ok(vec![App::Tcp(at("127.0.0.1:80"))]));
        assert_eq!(parse_app("[::1]:80"), Ok(vec![App::Tcp(at("[::1]:80"))]));
        assert_eq!(parse_app("[127.0.0.1]:80"), Ok(vec![App::Tcp(at("127.0.0.1:80"))]));
        assert_eq!(parse_app("unix:/run/a=b.sock"), Ok(vec![App::Unix("/run/a=b.sock".into())]));
        assert!(
            parse_app("localhost:80")
                .expect("in /etc/hosts")
                .contains(&App::Tcp(at("127.0.0.1:80")))
        );
        for (bad, says) in [
            ("/run/app.sock", "unix:"),
            ("unix:app.sock", "absolute"),
            ("3000", "host:port"),
            (":3000", "host is missing"),
            ("localhost:0", "1 to 65535"),
            ("localhost:99999", "1 to 65535"),
            ("::1:80", "[::1]"),
            ("no.such.host.invalid:80", "cannot be resolved"),
        ] {
            let problem = parse_app(bad).expect_err(bad);
            assert!(problem.contains(says), "{bad}: {problem}");
        }
        parse_app(&format!("unix:/{}", "x".repeat(107))).expect_err("too long");
    }

    #[test]
    fn listeners_collide_only_within_a_family() {
        assert!(collide(at("0.0.0.0:80"), at("127.0.0.1:80")));
        assert!(collide(at("127.0.0.1:80"), at("127.0.0.1:80")));
        assert!(!collide(at("127.0.0.1:80"), at("127.0.0.2:80")));
        assert!(!collide(at("0.0.0.0:80"), at("[::]:80")));
        assert!(!collide(at("0.0.0.0:0"), at("0.0.0.0:0")));
    }

    #[test]
    fn a_listener_that_would_dial_itself_is_seen() {
        assert!(dials_itself(at("0.0.0.0:80"), at("127.0.0.1:80")));
        assert!(dials_itself(at("[::]:80"), at("127.0.0.1:80")));
        assert!(dials_itself(at("127.0.0.1:80"), at("0.0.0.0:80")));
        assert!(dials_itself(at("127.0.0.1:80"), at("[::ffff:127.0.0.1]:80")));
        assert!(!dials_itself(at("127.0.0.1:80"), at("127.0.0.2:80")));
        assert!(!dials_itself(at("0.0.0.0:80"), at("192.0.2.1:80")), "a documentation address");
        assert!(!dials_itself(at("0.0.0.0:80"), at("127.0.0.1:81")));
    }
}
