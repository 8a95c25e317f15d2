//! The words of OpenTelemetry's semantic conventions for what a client or the application said, and how
//! much of a client's words is recorded.

use std::borrow::Cow;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};

/// The most of a text that a client chose. Spans that wait for a collector are at most 2048.
const LONGEST: usize = 512;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The content type of gRPC, and not of gRPC-Web.
pub fn is_grpc(kind: &HeaderValue) -> bool {
    let rest = kind.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The methods the conventions know.
pub fn is_known(method: &Method) -> bool {
    const OTHERS: [&str; 2] = ["PATCH", "QUERY"];
    let standard = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
    ];
    standard.contains(method) || OTHERS.contains(&method.as_str())
}

pub fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// `example.com:8080`, `[::1]:8080`, `example.com`.
pub fn host_and_port(text: &str, default: i64) -> (&str, i64) {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().unwrap_or(default)),
        _ => (text, default),
    };
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

/// The names in a query; what they are set to may be anybody's secret.
pub fn field_names(query: &str) -> Box<str> {
    let hide = |field: &str| match field.split_once('=') {
        Some((name, _)) => format!("{name}=REDACTED"),
        None => "REDACTED".to_owned(),
    };
    let fields: Vec<_> = cut(query).split('&').map(hide).collect();
    fields.join("&").into()
}

pub fn bounded(value: &HeaderValue) -> Option<Box<str>> {
    value.to_str().ok().map(|text| cut(text).into())
}

/// As much of it as is recorded.
pub fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

pub fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// The words of gRPC's status codes; the conventions want these.
pub fn grpc_word(code: u8) -> Cow<'static, str> {
    const WORDS: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    WORDS.get(usize::from(code)).map_or_else(|| code.to_string().into(), |word| (*word).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (text, host, port) in [
            ("shop.example.com", "shop.example.com", 80),
            ("shop.example.com:8080", "shop.example.com", 8080),
            ("[2001:db8::1]:81", "2001:db8::1", 81),
            ("[2001:db8::1]", "2001:db8::1", 80),
            ("a:b", "a", 80),
            ("", "", 80),
        ] {
            assert_eq!(host_and_port(text, 80), (host, port), "{text}");
        }
    }

    /// A29: what a query's fields are set to may be anybody's secret.
    #[test]
    fn of_a_query_only_the_names_are_kept() {
        assert_eq!(&*field_names("a=1&token=s3cr3t&x=y=z"), "a=REDACTED&token=REDACTED&x=REDACTED");
        assert_eq!(&*field_names("s3cr3t"), "REDACTED");
        assert_eq!(&*field_names(""), "REDACTED");
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let long = format!("a{}", "\u{e4}".repeat(LONGEST));
        assert_eq!(cut(&long).len(), LONGEST - 1);
        assert_eq!(cut("short"), "short");
    }

    #[test]
    fn methods_and_codes() {
        assert!(
            is_known(&Method::PATCH) && !is_known(&Method::from_bytes(b"BREW").expect("a token"))
        );
        assert_eq!((&*grpc_word(14), &*grpc_word(99)), ("UNAVAILABLE", "99"));
    }
}
