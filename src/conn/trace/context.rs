//! The trace a request belongs to, as its client says it: W3C Trace Context (w3.org/TR/trace-context),
//! read strictly. What is not exactly right is no context, and a new trace begins.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{SpanId, TraceId};

/// Names the trace, the span that called us, and whether it is recorded.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems say to each other; ours adds nothing.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The most of a `tracestate` that is looked at: what the recommendation asks to carry at least.
const STATE: usize = 512;

const SAMPLED: u8 = 1;
/// The trace's id is random enough to sample by (level 2).
const RANDOM: u8 = 2;

/// What `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub trace: TraceId,
    /// The span that called us.
    pub parent: SpanId,
    flags: u8,
}

impl Context {
    /// Of a request. Two such headers are none.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let first = headers.get(TRACEPARENT)?;
        let mut all = headers.get_all(TRACEPARENT).iter();
        all.next();
        if all.next().is_some() { None } else { Self::parse(first.as_bytes()) }
    }

    /// `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`, and what a later version may add
    /// at its end.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let [v1, v2, b'-', rest @ ..] = text else { return None };
        let [version] = hex([*v1, *v2])?;
        let (trace, rest) = rest.split_first_chunk::<32>()?;
        let (span, rest) = rest.strip_prefix(b"-")?.split_first_chunk::<16>()?;
        let (flags, more) = rest.strip_prefix(b"-")?.split_first_chunk::<2>()?;
        let [flags] = hex(*flags)?;
        let ends = more.is_empty() || version > 0 && more[0] == b'-';
        let (trace, span): ([u8; 16], [u8; 8]) = (hex(*trace)?, hex(*span)?);
        let named = trace != [0; 16] && span != [0; 8];
        (version != 0xff && ends && named).then_some(Self {
            trace: TraceId::from_bytes(trace),
            parent: SpanId::from_bytes(span),
            flags: flags & (SAMPLED | RANDOM),
        })
    }

    /// Whether whoever called us records this trace.
    pub const fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// What an application that `span` calls is told.
    pub fn for_application(trace: TraceId, span: SpanId, caller: Option<Self>) -> HeaderValue {
        let flags = SAMPLED | caller.map_or(0, |caller| caller.flags & RANDOM);
        let text = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
        HeaderValue::try_from(text).expect("digits and dashes")
    }
}

/// What tracing systems have said to each other before us, if it is short enough to be looked at.
pub fn state(headers: &HeaderMap) -> Option<Box<str>> {
    let mut lines = headers.get_all(TRACESTATE).iter();
    let mut joined = lines.next()?.to_str().ok()?.to_owned();
    for line in lines {
        joined.push(',');
        joined.push_str(line.to_str().ok()?);
    }
    (joined.len() <= STATE).then(|| joined.into())
}

/// Lower-case digits only, as the recommendation has it. `N` is twice `M`.
fn hex<const N: usize, const M: usize>(digits: [u8; N]) -> Option<[u8; M]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; M];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(text: &str) -> Option<Context> {
        Context::parse(text.as_bytes())
    }

    #[test]
    fn what_is_exactly_right_is_read() {
        let context = parse(GOOD).expect("the recommendation's own example");
        assert_eq!(context.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.parent.to_string(), "00f067aa0ba902b7");
        assert!(context.is_sampled());
        assert!(!parse(&GOOD.replace("-01", "-00")).expect("as good").is_sampled());
        // Flags that nobody knows yet are ignored; a later version may say more.
        assert!(parse(&GOOD.replace("-01", "-f9")).expect("as good").is_sampled());
        assert_eq!(parse(&GOOD.replace("00-4", "cc-4")), Some(context));
        assert_eq!(
            parse(&format!("{}-what-the-future-holds", GOOD.replace("00-4", "cc-4"))),
            Some(context)
        );
    }

    #[test]
    fn what_is_not_is_no_context() {
        let long = format!("{GOOD}-00");
        let later = GOOD.replace("00-4", "cc-4") + ".00";
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD} "),
            &format!(" {GOOD}"),
            &long,
            &later,
            &GOOD.to_uppercase(),
            &GOOD.replace("00-4", "ff-4"),
            &GOOD.replace("00-4", "0g-4"),
            &GOOD.replace('-', "_"),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &GOOD.replace("-01", "-0x"),
            &GOOD.replace("-01", "-.1"),
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn two_headers_are_none() {
        let value = HeaderValue::from_static(GOOD);
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, value.clone());
        assert!(Context::of(&headers).is_some());
        headers.append(TRACEPARENT, value);
        assert_eq!(Context::of(&headers), None);
    }

    #[test]
    fn a_state_is_joined_and_bounded() {
        let mut headers = HeaderMap::new();
        assert_eq!(state(&headers), None);
        headers.append(TRACESTATE, HeaderValue::from_static("a=1"));
        headers.append(TRACESTATE, HeaderValue::from_static("b=2"));
        assert_eq!(state(&headers).as_deref(), Some("a=1,b=2"));
        headers.append(TRACESTATE, HeaderValue::try_from("c".repeat(STATE)).expect("letters"));
        assert_eq!(state(&headers), None);
    }

    proptest! {
        #[test]
        fn what_we_say_is_understood(trace in 1u128.., span in 1u64.., flags in 0u8..4) {
            let (trace, span) = (TraceId::from(trace), SpanId::from(span));
            let caller = Context { trace, parent: span, flags };
            let said = Context::for_application(trace, span, Some(caller));
            let heard = Context::parse(said.as_bytes()).expect("it is well formed");
            prop_assert_eq!(heard, Context { flags: flags | SAMPLED, ..caller });
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Context::parse(&bytes);
        }

        /// One byte changed: the rest still says what it said, or it is no context.
        #[test]
        fn one_wrong_byte(at in 0usize..55, byte: u8) {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] = byte;
            if let Some(context) = Context::parse(&bytes) {
                prop_assert!(byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte) || byte == b'-');
                prop_assert!(context.trace != TraceId::INVALID && context.parent != SpanId::INVALID);
            }
        }
    }
}
