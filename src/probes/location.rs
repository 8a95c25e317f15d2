//! Addresses of requests: the path of a specification as it goes on the wire, and where a redirect leads.

use std::fmt::Write;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) https: bool,
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query.
    pub(super) target: String,
}

impl Place {
    /// `host:port`
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// As a `Referer` has it.
    pub(super) fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.target)
    }

    /// Where `location` leads from here (RFC 3986, 5.2); `None`: nowhere a request could go.
    pub(super) fn follow(&self, location: &str) -> Option<Self> {
        let location = location.trim().split('#').next().unwrap_or_default();
        let scheme = location.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?']));
        if let Some((scheme, rest)) = scheme {
            let https = scheme.eq_ignore_ascii_case("https");
            return (https || scheme.eq_ignore_ascii_case("http"))
                .then(|| Self::at(https, rest))?;
        }
        if let Some(rest) = location.strip_prefix("//") {
            return Self::at(self.https, rest);
        }
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let target = match location.chars().next() {
            None if query.is_empty() => path.to_owned(),
            None => self.target.clone(),
            Some('/') => without_dots(location),
            Some('?') => format!("{path}{location}"),
            Some(_) => {
                let directory = path.rfind('/').map_or("/", |end| &path[..=end]);
                without_dots(&format!("{directory}{location}"))
            }
        };
        Some(Self { target: encoded(&target), ..self.clone() })
    }

    fn at(https: bool, rest: &str) -> Option<Self> {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let authority: http::uri::Authority = rest[..end].parse().ok()?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if https => 443,
            None => 80,
        };
        Some(Self { https, host, port, target: encoded(&without_dots(&rest[end..])) })
    }
}

/// Path and query of a specification, as the kubelet sends them: what cannot be sent is encoded, and one
/// that is no URL is a path of just these characters.
pub(super) fn target(path: &str) -> String {
    let bytes = path.as_bytes();
    let escapes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%');
    let whole = |(at, _): (usize, &u8)| {
        bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    };
    if !{ escapes }.all(whole) {
        let quoted = path.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
        return encoded(&quoted);
    }
    encoded(path.split('#').next().unwrap_or_default())
}

/// Begins with a slash, and has nothing in it that a request line cannot have.
fn encoded(text: &str) -> String {
    let mut target = String::with_capacity(text.len() + 1);
    if !text.starts_with('/') {
        target.push('/');
    }
    for byte in text.bytes() {
        match byte {
            b'!'..=b'~' if !b"\"<>\\^`{|}".contains(&byte) => target.push(char::from(byte)),
            _ => drop(write!(target, "%{byte:02X}")),
        }
    }
    target
}

/// RFC 3986, 5.2.4; the query is left alone.
fn without_dots(text: &str) -> String {
    let (path, query) = match text.find('?') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let mut kept: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            part => kept.push(part),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_goes_out_as_the_kubelet_sends_it() {
        for (path, sent) in [
            ("", "/"),
            ("healthz", "/healthz"),
            ("/a b?c=ü#d", "/a%20b?c=%C3%BC"),
            ("/a%20b", "/a%20b"),
            ("/100%?x", "/100%25%3Fx"),
            ("/\r\nX-Evil: 1", "/%0D%0AX-Evil:%201"),
        ] {
            assert_eq!(target(path), sent);
        }
    }

    #[test]
    fn a_redirect_leads_where_a_browser_would_go() {
        let here =
            Place { https: false, host: "10.0.0.7".into(), port: 8080, target: "/a/b?c".into() };
        for (location, leads) in [
            ("/x", "http://10.0.0.7:8080/x"),
            ("x/./../y?z/..", "http://10.0.0.7:8080/a/y?z/.."),
            ("../../..", "http://10.0.0.7:8080/"),
            ("?q#f", "http://10.0.0.7:8080/a/b?q"),
            ("", "http://10.0.0.7:8080/a/b?c"),
            ("//10.0.0.7/x", "http://10.0.0.7:80/x"),
            ("HTTPS://10.0.0.7", "https://10.0.0.7:443/"),
            ("http://[fd00::7]:81/x", "http://[fd00::7]:81/x"),
        ] {
            assert_eq!(here.follow(location).map(|place| place.url()).as_deref(), Some(leads));
        }
        for nowhere in ["ftp://10.0.0.7/", "http://", "http://a b/"] {
            assert_eq!(here.follow(nowhere), None, "{nowhere}");
        }
    }
}
