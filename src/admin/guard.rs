//! Who may read the admin address from a browser: pages that came from this machine under a local
//! name. A foreign name that resolves to 127.0.0.1 (DNS rebinding) and a foreign page are turned
//! away.

use std::net::{IpAddr, SocketAddr};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderValue, ORIGIN};
use hyper::{Request, Response, StatusCode, Version};

use super::answer::text;

/// The refusal, if there is one. `bound`: the address the face listens on.
pub(super) fn check<B>(request: &Request<B>, bound: IpAddr) -> Option<Response<Full<Bytes>>> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (request.uri().authority(), hosts.next(), hosts.next()) {
        (_, _, Some(_)) => return Some(text(StatusCode::BAD_REQUEST, "more than one Host")),
        (Some(authority), ..) => Some(authority.as_str()),
        (None, Some(host), None) => host.to_str().ok(),
        // A browser always sends it.
        (None, None, None) if request.version() == Version::HTTP_10 => return None,
        (None, None, None) => return Some(text(StatusCode::BAD_REQUEST, "Host is missing")),
    };
    if !host.is_some_and(|host| is_local(host, bound)) {
        let problem = "this address answers to 127.0.0.1, localhost and [::1] only";
        return Some(text(StatusCode::MISDIRECTED_REQUEST, problem));
    }
    let foreign = |origin: &HeaderValue| {
        let host = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        !host.is_some_and(|host| is_local(host, bound))
    };
    if request.headers().get_all(ORIGIN).iter().any(foreign) {
        return Some(text(StatusCode::FORBIDDEN, "pages of other origins may not read this"));
    }
    None
}

/// A local name or the very address that was bound, with any port or none.
fn is_local(host: &str, bound: IpAddr) -> bool {
    let port_is_digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port_is_digits(port) && !name.ends_with(':') => name,
        _ => host,
    };
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let address = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => format!("[{v6}]:0").parse::<SocketAddr>().map(|address| address.ip()).ok(),
        None => name.parse::<std::net::Ipv4Addr>().map(IpAddr::V4).ok(),
    };
    address.is_some_and(|ip| {
        let known = ["127.0.0.1", "::1"].iter().any(|local| local.parse() == Ok(ip));
        known || (ip == bound && !bound.is_unspecified())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(headers: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::get("/status.json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        check(&request, IpAddr::from([127, 0, 0, 1])).map(|response| response.status().as_u16())
    }

    #[test]
    fn only_local_names_are_answered() {
        for host in ["127.0.0.1", "127.0.0.1:15820", "localhost", "LOCALHOST:1", "[::1]", "[::1]:9"]
        {
            assert_eq!(status(&[("host", host)]), None, "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example:15820",
            "10.0.0.1",
            "localhost.evil",
            "",
            "[::2]",
            "localhost:80@evil",
        ] {
            assert_eq!(status(&[("host", host)]), Some(421), "{host}");
        }
        assert_eq!(status(&[]), Some(400));
        assert_eq!(status(&[("host", "localhost"), ("host", "evil.example")]), Some(400));
    }

    #[test]
    fn foreign_pages_may_not_read() {
        let from = |origin| status(&[("host", "localhost:15820"), ("origin", origin)]);
        assert_eq!(from("http://localhost:15820"), None);
        for origin in ["http://evil.example", "https://localhost:15820", "null", ""] {
            assert_eq!(from(origin), Some(403), "{origin}");
        }
    }
}
