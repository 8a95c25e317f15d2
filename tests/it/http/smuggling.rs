//! A7, A8: what two parsers might understand differently. Whatever is sent, the application sees exactly
//! the requests that were counted and let in here, and answers are as many; or we say 400 and close.
//!
//! What is smuggled asks for `/smuggled`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::support::gateway::Gateway;
use crate::support::{Engine, SOON, Stopwatch, engines, skip, until};

use super::client::Http1;
use super::frames::{self, Raw};
use super::oracle::HttpOracle;
use super::outside::{NO_VENV, Outside};
use super::{assert_settled, gate};

engines!(beside:
    nginx_sees_what_we_see,
    gunicorn_sees_what_we_see,
    node_sees_what_we_see,
    the_oracle_sees_what_we_see,
    what_must_be_rejected_is,
    an_http2_request_smuggles_nothing,
);

/// How strictly a case is judged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// 400 and close: the standard says MUST (RFC 9112).
    Reject,
    /// Rejected, or understood alike.
    Alike,
}
use Rule::{Alike, Reject};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";

/// Name, head without the `Host` line, body.
const CORPUS: [(&str, Rule, &str, &str); 44] = [
    ("CL.TE", Alike, "POST / HTTP/1.1|Content-Length: 5|Transfer-Encoding: chunked", "0\r\n\r\nS"),
    ("TE.CL", Alike, "POST / HTTP/1.1|Transfer-Encoding: chunked|Content-Length: 4", "5c\r\nS"),
    (
        "TE.CL whole",
        Alike,
        "POST / HTTP/1.1|Transfer-Encoding: chunked|Content-Length: 3",
        "0\r\n\r\nS",
    ),
    ("CL.0", Alike, "POST / HTTP/1.1|Content-Length: 37", "S"),
    ("CL.0 GET", Alike, "GET / HTTP/1.1|Content-Length: 37", "S"),
    ("CL of 0 and a body", Alike, "POST / HTTP/1.1|Content-Length: 0", "S"),
    ("TE.0", Alike, "OPTIONS / HTTP/1.1|Transfer-Encoding: chunked", "25\r\nS\r\n0\r\n\r\n"),
    ("TE.0 GET", Alike, "GET / HTTP/1.1|Transfer-Encoding: chunked", "25\r\nS\r\n0\r\n\r\n"),
    ("two lengths", Reject, "POST / HTTP/1.1|Content-Length: 0|Content-Length: 37", "S"),
    (
        "the same length twice",
        Alike,
        "POST / HTTP/1.1|Content-Length: 5|Content-Length: 5",
        "hello",
    ),
    ("a list of lengths", Reject, "POST / HTTP/1.1|Content-Length: 0, 37", "S"),
    ("a list of one length", Alike, "POST / HTTP/1.1|Content-Length: 5, 5", "hello"),
    ("+5", Reject, "POST / HTTP/1.1|Content-Length: +5", "helloS"),
    ("-0", Reject, "POST / HTTP/1.1|Content-Length: -0", "S"),
    ("5 and a space", Reject, "POST / HTTP/1.1|Content-Length: 5 5", "helloS"),
    ("0x5", Reject, "POST / HTTP/1.1|Content-Length: 0x5", "helloS"),
    ("5e0", Reject, "POST / HTTP/1.1|Content-Length: 5e0", "helloS"),
    ("an empty length", Reject, "POST / HTTP/1.1|Content-Length: ", "S"),
    (
        "a length beyond 64 bits",
        Reject,
        "POST / HTTP/1.1|Content-Length: 18446744073709551621",
        "helloS",
    ),
    ("leading zeros", Alike, "POST / HTTP/1.1|Content-Length: 005", "helloS"),
    (
        "chunked is not last",
        Reject,
        "POST / HTTP/1.1|Transfer-Encoding: chunked, identity",
        "0\r\n\r\nS",
    ),
    ("unknown coding", Reject, "POST / HTTP/1.1|Transfer-Encoding: xchunked", "0\r\n\r\nS"),
    ("chunked twice", Alike, "POST / HTTP/1.1|Transfer-Encoding: chunked, chunked", "0\r\n\r\nS"),
    (
        "chunked in two lines",
        Alike,
        "POST / HTTP/1.1|Transfer-Encoding: chunked|Transfer-Encoding: identity",
        "0\r\n\r\nS",
    ),
    ("vertical tab", Reject, "POST / HTTP/1.1|Transfer-Encoding: \x0bchunked", "0\r\n\r\nS"),
    ("quoted", Reject, "POST / HTTP/1.1|Transfer-Encoding: \"chunked\"", "0\r\n\r\nS"),
    ("upper case", Alike, "POST / HTTP/1.1|Transfer-Encoding: CHUNKED", "0\r\n\r\nS"),
    (
        "a space before the colon",
        Reject,
        "POST / HTTP/1.1|Transfer-Encoding : chunked",
        "0\r\n\r\nS",
    ),
    ("a space before the colon of a length", Reject, "POST / HTTP/1.1|Content-Length : 37", "S"),
    ("an underscore", Alike, "POST / HTTP/1.1|Content_Length: 37|Content-Length: 5", "helloS"),
    (
        "folded",
        Alike,
        "POST / HTTP/1.1|Transfer-Encoding:\r\n chunked|Content-Length: 5",
        "0\r\n\r\nS",
    ),
    ("folded first line", Reject, "POST / HTTP/1.1| Transfer-Encoding: chunked", "0\r\n\r\nS"),
    ("bare LF in a head", Alike, "POST / HTTP/1.1|X: y\nTransfer-Encoding: chunked", "0\r\n\r\nS"),
    ("bare CR in a head", Reject, "POST / HTTP/1.1|X: y\rTransfer-Encoding: chunked", "0\r\n\r\nS"),
    ("NUL in a head", Reject, "POST / HTTP/1.1|X: y\0z", "S"),
    ("HTTP/1.0 chunked", Alike, "POST / HTTP/1.0|Transfer-Encoding: chunked", "0\r\n\r\nS"),
    (
        "HTTP/1.0 chunked, kept",
        Alike,
        "POST / HTTP/1.0|Connection: keep-alive|Transfer-Encoding: chunked|Content-Length: 5",
        "0\r\n\r\nS",
    ),
    (
        "chunk extension",
        Alike,
        "POST / HTTP/1.1|Transfer-Encoding: chunked",
        "5;a=\"b\"\r\nhello\r\n0\r\n\r\nS",
    ),
    (
        "LF in a chunk extension",
        Alike,
        "POST / HTTP/1.1|Transfer-Encoding: chunked",
        "2;\nxx\r\n25\r\n0\r\n\r\nS",
    ),
    (
        "LF after a chunk size",
        Alike,
        "POST / HTTP/1.1|Transfer-Encoding: chunked",
        "5\nhello\r\n0\r\n\r\nS",
    ),
    (
        "a chunk that is too long",
        Reject,
        "POST / HTTP/1.1|Transfer-Encoding: chunked",
        "5\r\nhelloX\r\n0\r\n\r\nS",
    ),
    (
        "a chunk size with a sign",
        Reject,
        "POST / HTTP/1.1|Transfer-Encoding: chunked",
        "+5\r\nhello\r\n0\r\n\r\nS",
    ),
    (
        "a chunk size beyond 64 bits",
        Reject,
        "POST / HTTP/1.1|Transfer-Encoding: chunked",
        "10000000000000005\r\nhello\r\n0\r\n\r\nS",
    ),
    (
        "a length among the trailers",
        Alike,
        "POST / HTTP/1.1|Transfer-Encoding: chunked",
        "0\r\nContent-Length: 37\r\n\r\nS",
    ),
];

/// Further bytes that are not of that shape.
fn raw_cases() -> Vec<(&'static str, Rule, String)> {
    let upgrade = "GET / HTTP/1.1\r\nHost: app\r\nConnection: Upgrade";
    let settings = "HTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    vec![
        (
            "a premature upgrade",
            Alike,
            format!("{upgrade}\r\nUpgrade: websocket\r\n\r\n{SMUGGLED}"),
        ),
        (
            "an upgrade with a body",
            Alike,
            format!("{upgrade}\r\nUpgrade: websocket\r\nContent-Length: 37\r\n\r\n{SMUGGLED}"),
        ),
        (
            "an upgrade to h2c",
            Alike,
            format!("{upgrade}, HTTP2-Settings\r\nUpgrade: h2c\r\n{settings}\r\n{SMUGGLED}"),
        ),
        ("bare LF everywhere", Alike, "GET / HTTP/1.1\nHost: app\n\n".to_owned() + SMUGGLED),
        (
            "an absolute target",
            Alike,
            format!("GET http://other/ HTTP/1.1\r\nHost: app\r\n\r\n{SMUGGLED}"),
        ),
        (
            "a space in the target",
            Alike,
            format!("GET /a b HTTP/1.1\r\nHost: app\r\n\r\n{SMUGGLED}"),
        ),
        (
            "two hosts",
            Alike,
            format!("GET / HTTP/1.1\r\nHost: app\r\nHost: other\r\n\r\n{SMUGGLED}"),
        ),
        ("no host", Alike, format!("GET / HTTP/1.1\r\n\r\n{SMUGGLED}")),
        (
            "empty lines first",
            Alike,
            format!("\r\n\r\nGET / HTTP/1.1\r\nHost: app\r\n\r\n{SMUGGLED}"),
        ),
        ("HTTP/0.9", Alike, format!("GET /\r\n\r\n{SMUGGLED}")),
        ("HTTP/1.2", Alike, format!("GET / HTTP/1.2\r\nHost: app\r\n\r\n{SMUGGLED}")),
        (
            "the preface later",
            Alike,
            format!(
                "GET / HTTP/1.1\r\nHost: app\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{SMUGGLED}"
            ),
        ),
    ]
}

/// What is sent, and what may come of it.
struct Case {
    name: &'static str,
    rule: Rule,
    bytes: String,
    /// The requests that the application is to see: `METHOD PATH BODY, …`.
    passes: &'static str,
}

fn corpus() -> Vec<Case> {
    let shaped = CORPUS.iter().map(|&(name, rule, head, body)| {
        let mut lines = head.split('|');
        let mut request = lines.next().expect("a request line").to_owned();
        let folded = lines.clone().next().is_some_and(|line| line.starts_with(' '));
        if !folded {
            request += "\r\nHost: app";
        }
        for line in lines {
            request += "\r\n";
            request += line;
        }
        let bytes = request + "\r\n\r\n" + &body.replace('S', SMUGGLED);
        (name, rule, bytes)
    });
    let cases = shaped.chain(raw_cases());
    cases.map(|(name, rule, bytes)| Case { name, rule, bytes, passes: passes(name) }).collect()
}

/// What the application is to see of a case: nothing of most. `Transfer-Encoding` wins over `Content-Length`, and
/// nothing follows then; what breaks off may have begun. Node reads no body of an upgrade that it declines.
fn passes(name: &str) -> &'static str {
    match name {
        "CL.TE" | "TE.CL whole" => "POST / 0",
        "TE.CL" | "a chunk that is too long" => "POST / *",
        "CL.0" => "POST / 37",
        "CL.0 GET" | "TE.0 GET" => "GET / 37",
        "TE.0" => "OPTIONS / 37",
        "the same length twice" => "POST / 5",
        "leading zeros" | "an underscore" | "chunk extension" => "POST / 5, GET /smuggled 0",
        "CL of 0 and a body"
        | "chunked twice"
        | "upper case"
        | "bare LF in a head"
        | "a length among the trailers" => "POST / 0, GET /smuggled 0",
        "a premature upgrade"
        | "an upgrade to h2c"
        | "bare LF everywhere"
        | "an absolute target"
        | "empty lines first" => "GET / 0, GET /smuggled 0",
        "an upgrade with a body" => "GET / *",
        "the preface later" => "GET / 0",
        _ => "",
    }
}

/// What a client does when it has sent all it has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It waits to be sent away.
    Waits,
    /// It says that nothing follows, so that there is an end whatever was understood.
    Ends,
}

/// The statuses of the answers that came before the end, and whether there was one.
fn ask(gateway: &Gateway, bytes: &str, then: Then) -> (Vec<u16>, bool) {
    let mut stream = TcpStream::connect(gateway.address).expect("the gateway listens");
    let _ = stream.write_all(bytes.as_bytes());
    if then == Then::Ends {
        let _ = stream.shutdown(Shutdown::Write); // it may be closed already
    }
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    let (mut said, mut part) = (Vec::new(), [0; 65_536]);
    let closed = loop {
        match stream.read(&mut part) {
            Ok(0) => break true,
            Ok(count) => said.extend_from_slice(&part[..count]),
            Err(error) => {
                break !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            }
        }
    };
    let text = String::from_utf8_lossy(&said).into_owned();
    let heads = text.match_indices("HTTP/1.").filter_map(|(at, _)| {
        let status = text.get(at + 9..at + 12)?.parse::<u16>().ok()?;
        (status != 100).then_some(status)
    });
    (heads.collect(), closed)
}

/// A request as the application has it in its books.
#[derive(Debug)]
struct Booked {
    method: String,
    path: String,
    /// How long its body was; nginx does not say.
    body: Option<u64>,
}

impl Booked {
    /// A line of the books of `tests/apps`: `- METHOD PATH BODY`.
    fn of(line: &str, with_body: bool) -> Self {
        let mut words = line.split(' ').skip(1);
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (method, path, body) = (word(), word(), word());
        Self { method, path, body: body.parse().ok().filter(|_| with_body) }
    }

    /// Whether it is what is written as `METHOD PATH BODY`; `*` stands for any length.
    fn is(&self, written: &str) -> bool {
        let mut words = written.split(' ');
        let (method, path, body) = (words.next(), words.next(), words.next());
        let same_body = body == Some("*")
            || self.body.is_none_or(|length| body == Some(length.to_string().as_str()));
        (method, path) == (Some(self.method.as_str()), Some(self.path.as_str())) && same_body
    }
}

/// Whether the application has exactly these in its books, in this order: see [`Case::passes`].
fn are(booked: &[Booked], passes: &str) -> bool {
    let written: Vec<_> = passes.split(", ").filter(|request| !request.is_empty()).collect();
    written.len() == booked.len() && written.iter().zip(booked).all(|(one, other)| other.is(one))
}

/// The whole corpus: `booked` says which requests the application has seen so far.
fn sees_what_we_see(gateway: &Gateway, booked: impl Fn() -> Vec<Booked>) {
    let mut wrong = Vec::new();
    let mut before = (gateway.port().admitted as usize, booked().len());
    for Case { name, rule, bytes, passes } in corpus() {
        let then = if rule == Reject { Then::Waits } else { Then::Ends };
        let (answers, closed) = ask(gateway, &bytes, then);
        let count = || (gateway.port().admitted as usize - before.0, booked().len() - before.1);
        let start = Stopwatch::start();
        let rejected = answers.last() == Some(&400) && closed;
        while !rejected && count().0 != count().1 && !start.is_past(SOON) {
            std::thread::sleep(std::time::Duration::from_millis(5)); // between two looks
        }
        // What was let in and broke off has been heard of by the application when its slot is free.
        until("no slot is held", SOON, || gateway.port().active == 0);
        let (ours, theirs) = count();
        let booked = &booked()[before.1..];
        let tell =
            format!("{name}: {answers:?}, closed: {closed}, we {ours}, the application {booked:?}");
        // What was let in and then turned out to be broken may be rejected before it is passed on.
        let broken = rejected && ours == theirs + 1;
        if ours != theirs && !broken {
            wrong.push(format!("not alike: {tell}"));
        }
        let as_it_should = are(booked, passes) || broken && booked.is_empty();
        if !as_it_should {
            wrong.push(format!("not what should pass, {passes:?}: {tell}"));
        }
        if answers.len() > ours + usize::from(rejected) {
            wrong.push(format!("more answers than requests: {tell}"));
        }
        if rule == Reject && !(answers.first() == Some(&400) && closed) && ours > 0 {
            // A request whose body turns out to be broken may have begun to be forwarded.
            let broken_body = name.starts_with("a chunk") && ours == 1 && closed;
            if !broken_body {
                wrong.push(format!("not rejected: {tell}"));
            }
        }
        before = (before.0 + ours, before.1 + theirs);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// In front of a server from outside.
fn outside(engine: Engine, app: &Outside) {
    let gateway = gate(engine, app.address())
        .set("limit", 4)
        .set("queued-half-close", "keep") // what waits when its client has no more to say is asked
        .start();
    sees_what_we_see(&gateway, || {
        let lines = app.lines();
        let ended = lines.iter().filter(|line| line.starts_with('-'));
        ended.map(|line| Booked::of(line, app.name != "nginx")).collect()
    });
    until("no slot is held", SOON, || gateway.port().active == 0);
    assert_settled(&gateway, app.port());
}

fn nginx_sees_what_we_see(engine: Engine) {
    match Outside::nginx() {
        Some(app) => outside(engine, &app),
        None => skip("nginx is not installed"),
    }
}

fn gunicorn_sees_what_we_see(engine: Engine) {
    match Outside::gunicorn() {
        Some(app) => outside(engine, &app),
        None => skip(NO_VENV),
    }
}

fn node_sees_what_we_see(engine: Engine) {
    match Outside::node() {
        Some(app) => outside(engine, &app),
        None => skip("node is not installed"),
    }
}

fn the_oracle_sees_what_we_see(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address)
        .set("limit", 4)
        .set("queued-half-close", "keep") // what waits when its client has no more to say is asked
        .start();
    sees_what_we_see(&gateway, || {
        let seen = app.seen().into_iter();
        let booked =
            seen.map(|seen| Booked { method: seen.method, path: seen.path, body: Some(seen.body) });
        booked.collect()
    });
    assert_settled(&gateway, app.address.port());
}

/// Where the standard says MUST, the first answer is 400, the connection is closed, and the application
/// hears nothing; the connection of somebody else is not affected.
fn what_must_be_rejected_is(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 4).start();
    let mut bystander = Http1::connect(gateway.address);
    let mut wrong = Vec::new();
    for Case { name, rule, bytes, .. } in corpus() {
        if rule == Alike || name.starts_with("a chunk") {
            continue; // a chunk is met only when the head has passed
        }
        let before = app.count();
        let (answers, closed) = ask(&gateway, &bytes, Then::Waits);
        if answers != [400] || !closed || app.count() != before {
            wrong.push(format!(
                "{name}: {answers:?}, closed: {closed}, {} passed",
                app.count() - before
            ));
        }
        assert_eq!(bystander.get("/").status, 200, "after {name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    drop(bystander);
    assert_settled(&gateway, app.address.port());
}

/// HTTP/2 in, HTTP/1 out: fields and bodies that would end a message early make no second request.
fn an_http2_request_smuggles_nothing(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 4).set("app-http2", "never").start();
    let cases: [(&str, Vec<u8>, &str); 9] = [
        (
            "a length of 0 and a body",
            frames::request("POST", "/", &[("content-length", "0")]),
            SMUGGLED,
        ),
        (
            "a length that is too short",
            frames::request("POST", "/", &[("content-length", "5")]),
            SMUGGLED,
        ),
        (
            "a length that is too long",
            frames::request("POST", "/", &[("content-length", "500")]),
            SMUGGLED,
        ),
        (
            "chunked",
            frames::request("POST", "/", &[("transfer-encoding", "chunked")]),
            "0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        ),
        (
            "a line break in a field",
            frames::request("GET", "/", &[("x", "y\r\n\r\nGET /smuggled HTTP/1.1")]),
            "",
        ),
        ("a line break in a name", frames::request("GET", "/", &[("x: y\r\nx", "z")]), ""),
        (
            "a line break in the path",
            frames::request("GET", "/ HTTP/1.1\r\n\r\nGET /smuggled", &[]),
            "",
        ),
        ("a space in the method", frames::request("GET /smuggled HTTP/1.1\r\nX:", "/", &[]), ""),
        (
            "an upgrade",
            frames::request("GET", "/", &[("connection", "upgrade"), ("upgrade", "websocket")]),
            SMUGGLED,
        ),
    ];
    for (name, head, body) in cases {
        let before = app.count();
        let mut raw = Raw::connect(gateway.address);
        let end = if body.is_empty() { frames::END_STREAM } else { 0 };
        let mut bytes = frames::frame(frames::HEADERS, frames::END_HEADERS | end, 1, &head);
        if !body.is_empty() {
            bytes.extend(frames::frame(frames::DATA, frames::END_STREAM, 1, body.as_bytes()));
        }
        raw.send(&bytes).expect("writes");
        // The end of the answer, of the stream or of the connection.
        let end = std::iter::from_fn(|| raw.read().ok()).find(|frame| {
            let ends = matches!(frame.kind, frames::HEADERS | frames::DATA) && frame.flags & 1 == 1;
            let reset = frame.kind == frames::RST_STREAM;
            frame.stream == 1 && (ends || reset) || frame.kind == frames::GOAWAY
        });
        assert!(end.is_some(), "{name}: neither answered nor sent away");
        drop(raw);
        until("no slot is held", SOON, || gateway.port().active == 0);
        let seen = app.seen();
        assert!(seen.len() <= before + 1, "{name}: {:?}", &seen[before..]);
        assert!(seen.iter().all(|seen| seen.path == "/"), "{name}: {:?}", &seen[before..]);
        assert!(seen.len() <= gateway.port().admitted as usize, "{name}: each was let in");
        let mut client = Http1::connect(gateway.address);
        client.ask("/", "");
        assert_eq!(client.answer().expect("an answer").status, 200, "after {name}");
        assert_eq!(client.id, app.ids().pop().expect("some"), "its own answer, after {name}");
    }
    assert_settled(&gateway, app.address.port());
}
