//! What curl and other clients rely on is the same with the gateway and without it: every case is asked of
//! the application directly, then through the gateway, and the answers are compared.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::pattern::{self, Checker};
use crate::support::{Engine, SOON, engines, process, scale, skip, until};

use super::client::{Answer, Http1};
use super::http2;
use super::oracle::HttpOracle;
use super::{assert_settled, gate, queued};

engines!(beside:
    curl_sees_the_same,
    curl_uploads_and_downloads_much,
    a_gigabyte_down_and_up_intact,
    an_upload_goes_on_while_nobody_takes_the_answer,
    chunks_pass_both_ways_as_they_come,
    a_server_sent_event_comes_at_once,
    trailers_pass_both_ways,
    one_hundred_continue_comes_with_the_slot,
    an_early_final_answer_comes_after_the_go_ahead_or_in_its_place,
    early_hints_pass,
    head_204_and_304_have_no_body,
    pipelined_requests_are_answered_in_order,
    http_1_0_is_served,
    a_body_to_the_end_of_the_connection,
    a_tunnel_begins_after_the_101,
    what_is_sent_before_the_101_waits_for_it,
    an_upgrade_that_is_declined_is_an_ordinary_answer,
    hop_by_hop_headers_stay_here,
    the_application_learns_who_asked,
);

/// An application that answers while it reads, and a client that reads when it has sent everything.
fn an_upload_goes_on_while_nobody_takes_the_answer(engine: Engine) {
    const LENGTH: usize = 32 << 20; // more than all buffers on the way together
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let app = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the gateway");
        let mut asked = BufReader::new(stream.try_clone().expect("a descriptor"));
        let mut line = String::new();
        while asked.read_line(&mut line).expect("a head") > 2 {
            line.clear();
        }
        // Not before it is asked: that would be nobody's answer.
        let answering = std::thread::spawn(move || {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            stream.write_all(&vec![b'a'; LENGTH])
        });
        let body = io::copy(&mut asked.take(LENGTH as u64), &mut io::sink());
        answering.join().expect("no panic").expect("all of the answer is taken");
        body.expect("all of the request comes")
    });
    let gateway = gate(engine, address).set("limit", 1).start();
    let mut client = Http1::connect(gateway.address);
    client.begin("POST", "/", &format!("Content-Length: {LENGTH}\r\n"));
    client.send(vec![b'u'; LENGTH]);
    let answer = client.answer().expect("an answer");
    assert_eq!((answer.status, answer.body.len()), (200, LENGTH));
    assert_eq!(app.join().expect("no panic"), LENGTH as u64);
}

/// Every case with both versions of HTTP: status, body, and the headers that are the application's.
fn curl_sees_the_same(engine: Engine) {
    if !process::installed("curl") {
        return skip("curl is not installed");
    }
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 4).start();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("body");
    std::fs::write(&file, pattern::slice(0, 60_000)).expect("writes");
    let (file, at) = (file.to_str().expect("UTF-8"), format!("@{}", file.display()));
    let cases: [&[&str]; 16] = [
        &["/"],
        &["-I", "/down?n=1000"],
        &["/down?n=1000000"],
        &["/down-chunked?n=1000000"],
        &["/stream?n=5&ms=1"],
        &["/status?code=204"],
        &["/status?code=304"],
        &["/status?code=404"],
        &["-H", "TE: trailers", "/trailers"],
        &["-d", "a=b&c=d", "/up"],
        &["--data-binary", &at, "/up"],
        &["-T", file, "/up"],
        &["-T", file, "-H", "Transfer-Encoding: chunked", "/up"],
        &["-T", file, "-H", "Expect: 100-continue", "/up"],
        &["-X", "DELETE", "/down?n=3"],
        &["-X", "OPTIONS", "/a%20path/%2e%2e/x?q=%26&r"],
    ];
    for version in ["--http1.1", "--http2-prior-knowledge", "--http1.0"] {
        for case in cases {
            let chunked = ["Transfer-Encoding: chunked", "TE: trailers"];
            if version == "--http1.0" && chunked.iter().any(|word| case.contains(word))
                || version == "--http2-prior-knowledge" && case.contains(&chunked[0])
            {
                continue; // that version has no chunks
            }
            let direct = curl(app.address, version, case);
            let through = curl(gateway.address, version, case);
            assert_eq!(through, direct, "{version} {case:?}");
            let seen = app.seen();
            let (before, now) = (&seen[seen.len() - 2], &seen[seen.len() - 1]);
            assert_eq!((&now.method, &now.path), (&before.method, &before.path));
            assert_eq!((now.body, now.damaged), (before.body, before.damaged));
        }
    }
    assert_settled(&gateway, app.address.port());
}

/// Status, sorted headers without those a proxy may change, and the body.
fn curl(to: SocketAddr, version: &str, case: &[&str]) -> (String, Vec<String>, Vec<u8>) {
    let (path, options) = case.split_last().expect("a path");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-i", "--max-time", "30", "--path-as-is", version]).args(options);
    let output = curl.arg(format!("http://{to}{path}")).output().expect("curl runs");
    assert!(output.status.success(), "{case:?} of {to}: {output:?}");
    // Without the go-ahead, which an application may leave out.
    let mut rest = &output.stdout[..];
    let (head, body) = loop {
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 4..];
        if head.split(' ').nth(1) != Some("100") {
            break (head, rest);
        }
    };
    let mut lines = head.lines();
    let status = lines.next().expect("a status line").split(' ').nth(1).expect("a status");
    let own =
        ["date", "via", "connection", "x-request-id", "transfer-encoding", "keep-alive", "trailer"];
    let headers = lines.map(str::to_ascii_lowercase);
    let headers =
        headers.filter(|line| !own.iter().any(|name| line.starts_with(&format!("{name}:"))));
    let mut headers: Vec<_> = headers.collect();
    headers.sort();
    (status.to_owned(), headers, body.to_vec())
}

/// Large files both ways at once through curl, with both versions.
fn curl_uploads_and_downloads_much(engine: Engine) {
    if !process::installed("curl") {
        return skip("curl is not installed");
    }
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 4).start();
    let length = (scale(16, 1024) as u64) << 20;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("body");
    let mut body = io::BufWriter::new(std::fs::File::create(&file).expect("ours"));
    let mut written = 0;
    while written < length {
        let part = pattern::slice(written, length - written);
        body.write_all(part).expect("writes");
        written += part.len() as u64;
    }
    body.into_inner().expect("writes");
    let ask = |version: &str, arguments: &[&str], path: &str, take: &mut dyn FnMut(&[u8])| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", version]).args(arguments);
        curl.arg(format!("http://{}{path}", gateway.address));
        let mut curl = curl.stdout(Stdio::piped()).spawn().expect("curl runs");
        let (mut said, mut part) = (curl.stdout.take().expect("piped"), vec![0; 1 << 16]);
        while let count @ 1.. = said.read(&mut part).expect("curl's output") {
            take(&part[..count]);
        }
        let status = curl.wait().expect("our child");
        assert!(status.success(), "{version} {path}: {status}");
    };
    let upload = ["-T", file.to_str().expect("UTF-8")];
    std::thread::scope(|scope| {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            scope.spawn(move || {
                let mut said = Vec::new();
                ask(version, &upload, "/up", &mut |part| said.extend_from_slice(part));
                assert_eq!(String::from_utf8_lossy(&said), format!("{length} intact"), "{version}");
            });
            scope.spawn(move || {
                let mut checker = Checker::default();
                ask(version, &[], &format!("/down?n={length}"), &mut |part| checker.take(part));
                checker.assert_intact(length);
            });
        }
    });
    assert_settled(&gateway, app.address.port());
}

/// P5: 64 MiB in short, 1 GiB as promised; known length and chunked.
fn a_gigabyte_down_and_up_intact(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    let length = (scale(64, 1024) as u64) << 20;
    let mut client = Http1::connect(gateway.address);
    for path in ["/down", "/down-chunked"] {
        client.ask(&format!("{path}?n={length}"), "");
        let mut answer = client.head().expect("an answer");
        let mut checker = Checker::default();
        let take = &mut |part: &[u8]| checker.take(part);
        client.body_of(&mut answer, "GET", take).expect("all of it");
        checker.assert_intact(length);
    }
    client.begin("POST", "/up", &format!("Content-Length: {length}\r\n"));
    let mut sent = 0;
    while sent < length {
        let part = pattern::slice(sent, length - sent);
        client.send(part);
        sent += part.len() as u64;
    }
    assert_eq!(client.answer().expect("an answer").text(), format!("{length} intact"));
    drop(client);
    assert_settled(&gateway, app.address.port());
}

/// Full duplex: each chunk comes back before the next is sent.
fn chunks_pass_both_ways_as_they_come(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    let mut client = Http1::connect(gateway.address);
    client.begin("POST", "/echo", "Transfer-Encoding: chunked\r\n");
    client.send("3\r\none\r\n");
    let mut answer = client.head().expect("the answer begins before the request has ended");
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    assert_eq!(client.raw(8).expect("a chunk"), b"3\r\none\r\n");
    for word in ["two", "six", "ten"] {
        client.send(format!("3;extension=\"x\"\r\n{word}\r\n"));
        assert_eq!(client.raw(8).expect("a chunk"), format!("3\r\n{word}\r\n").as_bytes());
    }
    client.send("0\r\n\r\n");
    client.body_of(&mut answer, "POST", &mut |part| panic!("more: {part:?}")).expect("the end");
    assert_eq!(client.get("/").status, 200, "the connection is kept");
    drop(client);
    assert_settled(&gateway, app.address.port());
}

/// Nothing is held back until there is more.
fn a_server_sent_event_comes_at_once(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    let mut client = Http1::asking(gateway.address, "/held-stream");
    let mut answer = client.head().expect("the head");
    assert_eq!(client.raw(11).expect("the first part"), b"6\r\nfirst \r\n");
    assert_eq!(app.in_progress(), 1, "it has not ended");
    app.release(1);
    let mut rest = Vec::new();
    client.body_of(&mut answer, "GET", &mut |part| rest.extend_from_slice(part)).expect("the end");
    assert_eq!(rest, b"last");
    drop(client);
    assert_settled(&gateway, app.address.port());
}

fn trailers_pass_both_ways(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    let mut client = Http1::connect(gateway.address);
    client.ask("/trailers", "TE: trailers\r\n");
    let answer = client.answer().expect("an answer");
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "4".to_owned())], "{answer:?}");
    client.begin("POST", "/up", "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n");
    client.send("1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n");
    let answer = client.answer().expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = app.seen().pop().expect("two");
    assert_eq!(seen.trailers, [("x-sum".to_owned(), "1".to_owned())], "{seen:?}");
    drop(client);
    assert_settled(&gateway, app.address.port());
}

/// The go-ahead is ours: it comes when the request is on its way to the application, never before it has a slot.
fn one_hundred_continue_comes_with_the_slot(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    let mut first = Http1::asking(gateway.address, "/held");
    until("the slot is taken", SOON, || app.in_progress() == 1);
    let mut client = Http1::connect(gateway.address).patience(Duration::from_millis(100));
    client.begin("POST", "/up", "Content-Length: 5\r\nExpect: 100-continue\r\n");
    queued(&gateway, 1);
    // Long enough to say it by mistake.
    assert_eq!(client.head().expect_err("no word").kind(), io::ErrorKind::WouldBlock);
    app.release(1);
    assert_eq!(first.answer().expect("an answer").status, 200);
    let mut client = client.patience(SOON);
    assert_eq!(client.head().expect("a go-ahead").status, 100);
    client.send(pattern::slice(0, 5));
    assert_eq!(client.answer().expect("an answer").text(), "5 intact");
    assert_eq!(client.get("/").status, 200, "the connection is kept");
    drop((first, client));
    assert_settled(&gateway, app.address.port());
}

/// 417 or 413: the client that waits for a go-ahead, and has had ours or not, reads it and need not send the body.
fn an_early_final_answer_comes_after_the_go_ahead_or_in_its_place(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).set("abandon-timeout", "1s").start();
    for status in [417, 413] {
        let mut client = Http1::connect(gateway.address);
        let path = format!("/deaf?status={status}");
        client.begin("POST", &path, "Content-Length: 5\r\nExpect: 100-continue\r\n");
        let mut answer = client.head().expect("an answer");
        if answer.status == 100 {
            answer = client.head().expect("an answer");
        }
        assert_eq!(answer.status, status);
    }
    let mut client = Http1::connect(gateway.address);
    assert_eq!(
        client.post("/up", pattern::slice(0, 9)).text(),
        "9 intact",
        "nothing was left behind"
    );
    drop(client);
    assert_settled(&gateway, app.address.port());
}

fn early_hints_pass(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    let mut client = Http1::asking(gateway.address, "/hints");
    let mut answer = client.head().expect("an answer");
    if answer.status == 103 {
        answer = client.head().expect("an answer"); // a proxy may drop them: RFC 8297
    }
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(client.raw(2).expect("a body"), b"ok");
    drop(client);
    assert_settled(&gateway, app.address.port());
}

fn head_204_and_304_have_no_body(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    let mut client = Http1::connect(gateway.address);
    for path in ["/down?n=1000", "/stream?n=2&ms=1", "/status?code=304"] {
        client.begin("HEAD", path, "");
        let answer = client.answer_to("HEAD").expect("an answer");
        let length = path.contains("down").then_some("1000");
        assert_eq!(answer.header("content-length"), length, "{path}: {answer:?}");
    }
    for status in [204, 304] {
        let answer = client.get(&format!("/status?code={status}"));
        assert_eq!((answer.status, answer.header("content-length")), (status, None));
        assert_eq!(answer.header("transfer-encoding"), None, "{answer:?}");
    }
    assert_eq!(client.get("/").text(), "ok", "nothing is left over");
    drop(client);
    assert_settled(&gateway, app.address.port());
}

/// GETs and POSTs in one segment.
fn pipelined_requests_are_answered_in_order(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 4).start();
    let answers = |to: SocketAddr| {
        let mut client = Http1::connect(to);
        let get = |n: u32| format!("GET /down?n={n} HTTP/1.1\r\nHost: app\r\n\r\n");
        let post = "POST /up HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n";
        let chunked =
            "POST /up HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        client.send([&get(5), post, &get(70_000), chunked, &get(0), &get(1)].concat());
        let read = |_| {
            let answer = client.answer().expect("an answer");
            (answer.status, answer.body)
        };
        (0..6).map(read).collect::<Vec<_>>()
    };
    assert_eq!(answers(gateway.address), answers(app.address));
    assert_settled(&gateway, app.address.port());
}

/// Answered, then closed; kept only when asked.
fn http_1_0_is_served(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    for path in ["/down?n=100", "/down-chunked?n=100"] {
        let mut client = Http1::connect(gateway.address);
        client.send(format!("GET {path} HTTP/1.0\r\n\r\n"));
        let answer = client.answer().expect("an answer");
        assert_eq!((answer.status, answer.body.len()), (200, 100), "{path}: {answer:?}");
        assert_eq!(answer.header("transfer-encoding"), None, "{answer:?}");
        assert!(client.closed(), "{path}");
    }
    let mut client = Http1::connect(gateway.address);
    for _ in 0..2 {
        client.send("GET /down?n=100 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.answer().expect("an answer").status, 200);
    }
    drop(client);
    assert_settled(&gateway, app.address.port());
}

fn a_body_to_the_end_of_the_connection(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    let answer = Http1::connect(gateway.address).get("/to-close");
    assert_eq!((answer.status, answer.text().as_str()), (200, "until closed"));
    assert_settled(&gateway, app.address.port());
}

/// P5: bytes pass both ways and hold the slot until the end.
fn a_tunnel_begins_after_the_101(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).set("queue-length", 0).start();
    let mut client = Http1::connect(gateway.address);
    client.ask("/tunnel", "Connection: Upgrade\r\nUpgrade: echo\r\n");
    let answer = client.answer().expect("an answer");
    assert_eq!((answer.status, answer.header("upgrade")), (101, Some("echo")), "{answer:?}");
    let bytes = pattern::slice(0, 60_000);
    client.send(bytes);
    assert_eq!(client.raw(bytes.len()).expect("an echo"), bytes);
    assert_eq!((gateway.port().active, app.in_progress()), (1, 1));
    assert_eq!(Http1::connect(gateway.address).get("/").status, 503, "the slot is held");
    client.stream.shutdown(std::net::Shutdown::Write).expect("half-closes");
    assert!(client.closed(), "the end passes");
    drop(client);
    assert_settled(&gateway, app.address.port());
    assert_eq!(Http1::connect(gateway.address).get("/").status, 200);
}

/// A8: what is sent with the request to switch waits for the 101, however long that takes, and comes after it.
fn what_is_sent_before_the_101_waits_for_it(engine: Engine) {
    let app = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = app.local_addr().expect("bound");
    let gateway = gate(engine, address).set("limit", 1).start();
    let mut client = Http1::connect(gateway.address);
    let early = pattern::slice(0, 20_000);
    let request = "GET / HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    client.send([request.as_bytes(), early].concat());
    let (mut stream, _) = app.accept().expect("it is dialled");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    let (mut head, mut part) = (Vec::new(), [0; 65_536]);
    while !head.ends_with(b"\r\n\r\n") {
        assert!(!head.windows(4).any(|end| end == b"\r\n\r\n"), "bytes after the head: {head:?}");
        let count = stream.read(&mut part).expect("a head");
        assert!(count > 0, "the connection ended in the head");
        head.extend_from_slice(&part[..count]);
    }
    // Long enough to pass them on by mistake.
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    assert!(stream.read(&mut part).is_err(), "nothing before the 101");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    let switching =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(switching.as_bytes()).expect("writes");
    let mut came = vec![0; early.len()];
    stream.read_exact(&mut came).expect("all of it");
    assert!(came == early, "as it was sent");
    stream.write_all(b"hello").expect("writes");
    assert_eq!(client.head().expect("an answer").status, 101);
    assert_eq!(client.raw(5).expect("the tunnel"), b"hello");
    drop((client, stream));
    assert_settled(&gateway, address.port());
}

/// A8: the application answers 200 to an upgrade: what follows is a request, not a tunnel.
fn an_upgrade_that_is_declined_is_an_ordinary_answer(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    let mut client = Http1::connect(gateway.address);
    client.ask("/", "Connection: Upgrade\r\nUpgrade: echo\r\n");
    client.send("GET /second HTTP/1.1\r\nHost: app\r\n\r\n");
    assert_eq!(client.answer().expect("an answer").status, 200);
    until_two(&gateway, &app, &mut client);
    drop(client);
    assert_settled(&gateway, app.address.port());
}

/// The second request is served as a request of its own, or the connection is closed without it.
fn until_two(gateway: &crate::support::gateway::Gateway, app: &HttpOracle, client: &mut Http1) {
    match client.answer() {
        Ok(Answer { status, .. }) => {
            assert_eq!((status, app.count()), (200, 2));
            assert_eq!(gateway.port().admitted, 2, "it was counted");
        }
        Err(_) => assert_eq!(app.count(), 1),
    }
}

/// What belongs to one connection is not passed on, in either direction; the rest is.
fn hop_by_hop_headers_stay_here(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    let mut client = Http1::connect(gateway.address);
    let hops =
        "Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n";
    client.ask(
        "/",
        &format!("{hops}X-End: 1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
    );
    let answer = client.answer().expect("an answer");
    assert_eq!(answer.status, 200);
    assert!(client.closed(), "as it asked");
    let seen = app.seen().pop().expect("one");
    for name in ["x-hop", "keep-alive", "proxy-connection", "http2-settings", "upgrade"] {
        assert_eq!(seen.header(name), None, "{seen:?}");
    }
    assert_eq!(seen.header("x-end"), Some("1"));
    assert_ne!(seen.header("connection"), Some("close, X-Hop"), "{seen:?}");
    drop(client);
    assert_settled(&gateway, app.address.port());

    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    let gateway = gate(engine, address).set("limit", 1).set("app-http2", "never").start();
    let answers = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("it is dialled");
        let mut part = [0; 65_536];
        for _ in 0..2 {
            while !part.windows(4).any(|end| end == b"\r\n\r\n") {
                assert!(stream.read(&mut part).expect("a head") > 0, "it keeps the connection");
            }
            part.fill(0);
            let head = "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n";
            let more = "Keep-Alive: timeout=5\r\nProxy-Connection: x\r\nUpgrade: other\r\n";
            let rest = "X-End: 1\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all([head, more, rest].concat().as_bytes()).expect("writes");
        }
    });
    let one = Http1::connect(gateway.address).get("/");
    let two =
        http2::block_on(async { http2::Http2::connect(gateway.address).await.get("/").await });
    for answer in [one, two] {
        for name in ["x-hop", "keep-alive", "proxy-connection", "upgrade", "connection"] {
            assert_eq!(answer.header(name), None, "{answer:?}");
        }
        assert_eq!((answer.header("x-end"), answer.text().as_str()), (Some("1"), "ok"));
    }
    answers.join().expect("it was asked twice, on one connection");
    assert_settled(&gateway, address.port());
}

/// `X-Forwarded-*` are appended to, `Host` and trace context are passed on.
fn the_application_learns_who_asked(engine: Engine) {
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address).set("limit", 1).start();
    let mut client = Http1::connect(gateway.address).patience(SOON + Duration::from_secs(1));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    client.ask("/", &format!("X-Forwarded-For: 192.0.2.7\r\nTraceparent: {trace}\r\n"));
    assert_eq!(client.answer().expect("an answer").status, 200);
    let seen = app.seen().pop().expect("one");
    let list = seen.headers.iter().filter(|(name, _)| name == "x-forwarded-for");
    let list: Vec<_> = list.map(|(_, value)| value.replace(' ', "")).collect();
    assert_eq!(list.join(","), "192.0.2.7,127.0.0.1", "{seen:?}");
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"), "{seen:?}");
    assert_eq!(seen.header("x-forwarded-host"), Some("app"), "{seen:?}");
    assert_eq!(seen.header("host"), Some("app"));
    let passed_on = seen.header("traceparent").expect("the trace goes on");
    assert_eq!(passed_on[..35], trace[..35], "the same trace");
    drop(client);
    assert_settled(&gateway, app.address.port());
}
