//! What is changed in the heads of requests and responses on their way: what belongs to one
//! connection only is taken off (RFC 9110, section 7.6.1), who the client is is put on.

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, Entry, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue,
    TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Body;

use super::{Client, Forwarded};
use crate::io::Engine;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What is in a head that concerns us: found in one pass, because most heads have none of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// `connection`: it names what else stays behind.
    connection: bool,
    /// Another header that is about one connection only.
    hop: bool,
    te: bool,
    upgrade: bool,
    transfer_encoding: bool,
}

impl Marks {
    /// Look through a head.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut marks = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "connection" => marks.connection = true,
                "keep-alive" | "proxy-connection" | "http2-settings" => marks.hop = true,
                "te" => marks.te = true,
                "upgrade" => marks.upgrade = true,
                "transfer-encoding" => marks.transfer_encoding = true,
                _ => {}
            }
        }
        marks
    }
}

/// Make a client's request one to the application.
pub fn for_application<E: Engine, B>(client: &Client<E>, request: &mut Request<B>) {
    let marks = Marks::of(request.headers());
    let upgrade = if marks.upgrade { wanted_upgrade(request) } else { None };
    let trailers =
        marks.te && request.headers().get(TE).is_some_and(|te| has_token(te, "trailers"));
    let http2 = request.version() == Version::HTTP_2;
    let authority = request.uri().authority().and_then(|authority| {
        // Credentials in an address are for nobody to see.
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        HeaderValue::from_str(host).ok()
    });
    let headers = request.headers_mut();
    remove_hop_by_hop(headers, marks);
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(authority) = authority {
        headers.insert(HOST, authority);
    }
    introduce(client, headers, http2);
}

/// The form of a request on a connection of HTTP/1.
pub fn as_http1<B: Body>(request: &mut Request<B>) {
    let bodiless = request.body().is_end_stream();
    if request.uri().authority().is_some() {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    let http2 = std::mem::replace(request.version_mut(), Version::HTTP_11) == Version::HTTP_2;
    let headers = request.headers_mut();
    if bodiless {
        headers.remove(TRANSFER_ENCODING);
    } else if !headers.contains_key(CONTENT_LENGTH) {
        // Said here, because without it a GET would lose its body.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if http2 {
        join_cookies(headers);
    }
}

/// The form of a request on a stream of HTTP/2. An address that cannot be one is left out.
pub fn as_http2<B>(request: &mut Request<B>) {
    let host = request.headers_mut().remove(HOST);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let path = request.uri().path_and_query().cloned();
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.unwrap_or_else(|| Authority::from_static("localhost")));
    parts.path_and_query = path.or_else(|| Some(PathAndQuery::from_static("/")));
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.remove(TRANSFER_ENCODING);
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
}

/// Make the application's response one to the client.
pub fn for_client<B>(response: &mut Response<B>) {
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    let marks = Marks::of(headers);
    let upgrade = switching.then(|| headers.get(UPGRADE).cloned()).flatten();
    remove_hop_by_hop(headers, marks);
    if marks.transfer_encoding {
        headers.remove(TRANSFER_ENCODING);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
}

/// The protocol a request asks to switch to. Not HTTP/2: an upgrade to it would take the rest of the
/// connection past the gate.
pub fn wanted_upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    let headers = request.headers();
    let upgrade = headers.get(UPGRADE)?;
    let asked = headers.get_all(CONNECTION).iter().any(|value| has_token(value, "upgrade"));
    let http2 = has_token(upgrade, "h2c") || has_token(upgrade, "h2");
    (request.version() == Version::HTTP_11 && asked && !http2).then(|| upgrade.clone())
}

/// Whether a client of HTTP/1 sends nothing more after this request, which is only a head.
pub fn is_last<B: Body>(request: &Request<B>) -> bool {
    let mut options = request.headers().get_all(CONNECTION).iter();
    let ends = match request.version() {
        Version::HTTP_11 => options.any(|value| has_token(value, "close")),
        Version::HTTP_10 => !options.any(|value| has_token(value, "keep-alive")),
        _ => false,
    };
    ends && request.body().is_end_stream()
}

fn has_token(value: &HeaderValue, token: &str) -> bool {
    let tokens = value.to_str().unwrap_or_default().split(',');
    tokens.into_iter().any(|one| one.trim().eq_ignore_ascii_case(token))
}

/// What is only about the connection it came on. `transfer-encoding` is the caller's business.
fn remove_hop_by_hop(headers: &mut HeaderMap, marks: Marks) {
    if marks.connection {
        let listed: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            // Most say no more than this, and it names no header but one that is removed in any case.
            .filter(|name| {
                !["close", "keep-alive"].iter().any(|word| name.eq_ignore_ascii_case(word))
            })
            .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
            // Somebody who lists these wants to change what the message means.
            .filter(|name| ![HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name))
            .collect();
        for name in listed {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    if marks.hop || marks.te || marks.upgrade {
        for name in [KEEP_ALIVE, PROXY_CONNECTION, TE, UPGRADE, HTTP2_SETTINGS] {
            headers.remove(name);
        }
    }
}

/// HTTP/2 may send a cookie in pieces; HTTP/1 may not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut pieces = headers.get_all(COOKIE).iter();
    let (Some(first), Some(_)) = (pieces.next(), pieces.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for piece in headers.get_all(COOKIE).iter().skip(1) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(piece.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

/// Say who the client is, after what others have said before us.
fn introduce<E: Engine>(client: &Client<E>, headers: &mut HeaderMap, http2: bool) {
    let config = &client.config.http;
    if matches!(config.forwarded, Forwarded::XForwarded | Forwarded::Both) {
        if let Some(from) = &client.forwarded_for {
            append(headers, X_FORWARDED_FOR, from);
        }
        if let Entry::Vacant(vacant) = headers.entry(X_FORWARDED_PROTO) {
            vacant.insert(HeaderValue::from_static("http"));
        }
        if let Some(host) = headers.get(HOST).cloned()
            && let Entry::Vacant(vacant) = headers.entry(X_FORWARDED_HOST)
        {
            vacant.insert(host);
        }
    }
    if matches!(config.forwarded, Forwarded::Forwarded | Forwarded::Both)
        && let Some(from) = &client.forwarded
    {
        append(headers, FORWARDED, from);
    }
    if config.via {
        append(
            headers,
            VIA,
            &HeaderValue::from_static(if http2 { "2 tidegate" } else { "1.1 tidegate" }),
        );
    }
}

/// The list in a header, longer by one.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(vacant) => {
            vacant.insert(value.clone());
        }
        Entry::Occupied(mut occupied) => {
            let before: Vec<&[u8]> = occupied.iter().map(HeaderValue::as_bytes).collect();
            let list = [&before[..], &[value.as_bytes()]].concat().join(&b", "[..]);
            if let Ok(list) = HeaderValue::from_bytes(&list) {
                occupied.insert(list);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn what_a_connection_names_goes_with_it_but_not_what_frames_a_message() {
        let mut headers = map(&[
            ("connection", "close, X-Private, content-length, host"),
            ("x-private", "1"),
            ("content-length", "5"),
            ("host", "a"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("x-public", "2"),
        ]);
        let marks = Marks::of(&headers);
        remove_hop_by_hop(&mut headers, marks);
        let expected = [("content-length", "5"), ("host", "a"), ("x-public", "2")];
        assert_eq!(headers, map(&expected));
    }

    #[test]
    fn a_list_grows_at_its_end() {
        let mut headers = map(&[("via", "1.0 a"), ("via", "1.1 b, 1.1 c")]);
        append(&mut headers, VIA, &HeaderValue::from_static("2 d"));
        assert_eq!(headers, map(&[("via", "1.0 a, 1.1 b, 1.1 c, 2 d")]));
    }

    #[test]
    fn cookies_of_http2_are_joined() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2; c=3")]));
    }

    #[test]
    fn who_says_so_sends_nothing_more() {
        let last = |version, connection: &str, body: &str| {
            let request = Request::builder().version(version).header(CONNECTION, connection);
            let body = http_body_util::Full::<bytes::Bytes>::new(body.to_owned().into());
            is_last(&request.body(body).unwrap())
        };
        assert!(last(Version::HTTP_11, "te, Close", ""));
        assert!(!last(Version::HTTP_11, "close", "a body that may be unread"));
        assert!(!last(Version::HTTP_11, "keep-alive", ""));
        assert!(last(Version::HTTP_10, "", ""));
        assert!(!last(Version::HTTP_10, "keep-alive", ""));
    }

    #[test]
    fn nobody_switches_to_http2_here() {
        let asks = |connection: &str, upgrade: &str, version| {
            let request = Request::builder()
                .version(version)
                .header(CONNECTION, connection)
                .header(UPGRADE, upgrade)
                .body(())
                .unwrap();
            wanted_upgrade(&request).is_some()
        };
        assert!(asks("keep-alive, Upgrade", "websocket", Version::HTTP_11));
        assert!(!asks("Upgrade, HTTP2-Settings", "h2c", Version::HTTP_11));
        assert!(!asks("Upgrade", "websocket, h2c", Version::HTTP_11));
        assert!(!asks("close", "websocket", Version::HTTP_11));
        assert!(!asks("Upgrade", "websocket", Version::HTTP_10));
    }
}
