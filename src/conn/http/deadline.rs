//! When a request stops being worth an answer, as its client says: `grpc-timeout`, or a header the
//! operator names, which holds milliseconds or a duration with a unit.

use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The earliest deadline a request names.
pub fn of(headers: &HeaderMap, named: Option<&HeaderName>, now: Instant) -> Option<Instant> {
    let grpc = headers.get(GRPC_TIMEOUT).and_then(grpc_timeout);
    let named = named.and_then(|name| headers.get(name)).and_then(plain_timeout);
    let left = [grpc, named].into_iter().flatten().min()?;
    now.checked_add(left)
}

/// At most eight digits and a unit: the gRPC protocol over HTTP/2, "Timeout".
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// `1500` (milliseconds), or `1.5s`-like words of [`humantime`].
fn plain_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    match text.parse::<u32>() {
        Ok(millis) => Some(Duration::from_millis(millis.into())),
        Err(_) => humantime::parse_duration(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_or_ignored() {
        let grpc = |text: &'static str| grpc_timeout(&HeaderValue::from_static(text));
        assert_eq!(grpc("100m"), Some(Duration::from_millis(100)));
        assert_eq!(grpc("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(grpc("0n"), Some(Duration::ZERO));
        for bad in ["", "m", "100", "-1m", "+1m", "1.5S", "123456789m", "1 m", "\u{7f}"] {
            let value = HeaderValue::from_bytes(bad.as_bytes());
            assert_eq!(value.ok().and_then(|value| grpc_timeout(&value)), None, "{bad}");
        }
        let plain = |text: &'static str| plain_timeout(&HeaderValue::from_static(text));
        assert_eq!(plain("250"), Some(Duration::from_millis(250)));
        assert_eq!(plain("2s"), Some(Duration::from_secs(2)));
        assert_eq!(plain("soon"), None);
    }
}
