//! P9: on a TCP port every byte, and every way to end, passes unchanged.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use socket2::SockRef;

use crate::support::gateway::{Gateway, Setup};
use crate::support::ledger;
use crate::support::oracle::{Oracle, Script};
use crate::support::pattern::{self, Checker};
use crate::support::{Engine, SOON, Stopwatch, engines, process, scale, skip, slack, until};

engines!(
    ten_megabytes_after_the_clients_fin,
    ten_megabytes_after_the_applications_fin,
    the_server_speaks_first,
    single_bytes,
    a_gigabyte_there_and_back,
    many_streams_at_once,
    a_reset_in_a_response_arrives_as_a_reset,
    a_clients_reset_reaches_the_application,
    tls_passes_untouched,
    a_unix_socket_application,
    the_proxy_header_is_exact,
    a_zero_byte_connection,
    an_urgent_byte_stays_in_line,
);

const TEN_MEGABYTES: u64 = 10 << 20;

fn open(gateway: &Gateway) -> TcpStream {
    let stream = TcpStream::connect(gateway.address).expect("connects");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream.set_write_timeout(Some(SOON)).expect("a timeout");
    stream
}

fn send_pattern(stream: &mut TcpStream, length: u64) {
    let mut sent = 0;
    while sent < length {
        let part = pattern::slice(sent, length - sent);
        stream.write_all(part).expect("writes");
        sent += part.len() as u64;
    }
}

fn read_pattern(stream: &mut TcpStream, length: u64) {
    let mut checker = Checker::default();
    let mut buffer = vec![0; 65_536];
    loop {
        match stream.read(&mut buffer).expect("reads") {
            0 => break,
            count => checker.take(&buffer[..count]),
        }
    }
    checker.assert_intact(length);
}

/// P9, T07: the client has ended; the application hears it, then answers 10 MiB.
fn ten_megabytes_after_the_clients_fin(engine: Engine) {
    let oracle = Oracle::start(Script::AnswerAfterEnd(TEN_MEGABYTES));
    let gateway = Setup::new(engine, oracle.address).set("limit", 4).start();
    let mut stream = open(&gateway);
    send_pattern(&mut stream, 1000);
    until("the application has it", SOON, || {
        oracle.arrivals().first().is_some_and(|first| first.received == 1000)
    });
    stream.shutdown(Shutdown::Write).expect("half-close");
    read_pattern(&mut stream, TEN_MEGABYTES);
    assert_eq!(oracle.arrivals()[0].received, 1000);
    gateway.assert_clean();
}

/// P9, T07: the application has ended; the client hears it within 50 ms, then sends 10 MiB.
fn ten_megabytes_after_the_applications_fin(engine: Engine) {
    let oracle = Oracle::start(Script::EndFirst(1000));
    let gateway = Setup::new(engine, oracle.address).set("limit", 4).start();
    let mut stream = open(&gateway);
    let start = Stopwatch::start();
    read_pattern(&mut stream, 1000);
    let own = start.own();
    assert!(own < slack(Duration::from_millis(50)), "FIN after {own:?}");
    send_pattern(&mut stream, TEN_MEGABYTES);
    assert_eq!(gateway.port().active, 1, "it holds its slot until both have ended");
    drop(stream);
    until("the application has read all", SOON, || oracle.count() == 0);
    let arrival = &oracle.arrivals()[0];
    assert_eq!(
        (arrival.received, arrival.damaged, arrival.end),
        (TEN_MEGABYTES, false, Some(Ok(())))
    );
    gateway.assert_clean();
}

/// P9, T08: a client that says nothing gets the server's banner within 20 ms.
fn the_server_speaks_first(engine: Engine) {
    let oracle = Oracle::start(Script::SpeakFirst(b"220 ready\r\n"));
    let gateway = Setup::new(engine, oracle.address).set("limit", 4).start();
    let start = Stopwatch::start();
    let mut stream = open(&gateway);
    let mut banner = [0; 11];
    stream.read_exact(&mut banner).expect("a banner");
    let own = start.own();
    assert!(own < slack(Duration::from_millis(20)), "{own:?}");
    assert_eq!(&banner, b"220 ready\r\n");
    drop(stream);
    gateway.assert_clean();
}

/// P9: bytes one by one, each answered before the next.
fn single_bytes(engine: Engine) {
    let oracle = Oracle::start(Script::Echo);
    let gateway = Setup::new(engine, oracle.address).set("limit", 4).start();
    let mut stream = open(&gateway);
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let start = Stopwatch::start();
    for byte in pattern::slice(0, 1_000) {
        stream.write_all(&[*byte]).expect("writes");
        let mut echo = [0];
        stream.read_exact(&mut echo).expect("reads");
        assert_eq!(echo[0], *byte);
    }
    let own = start.own();
    assert!(own < Duration::from_secs(10), "1 000 turns took {own:?}");
    drop(stream);
    gateway.assert_clean();
}

/// P9: a gigabyte there and back, compared byte by byte.
fn a_gigabyte_there_and_back(engine: Engine) {
    let length = scale(64 << 20, 1 << 30) as u64;
    let oracle = Oracle::start(Script::Echo);
    let gateway = Setup::new(engine, oracle.address).set("limit", 4).start();
    there_and_back(&gateway, length);
    gateway.assert_clean();
}

fn there_and_back(gateway: &Gateway, length: u64) {
    let mut stream = open(gateway);
    let mut sender = stream.try_clone().expect("a second handle");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send_pattern(&mut sender, length);
            sender.shutdown(Shutdown::Write).expect("half-close");
        });
        read_pattern(&mut stream, length);
    });
}

/// P9: bytes of one connection never show up on another.
fn many_streams_at_once(engine: Engine) {
    let oracle = Oracle::start(Script::Echo);
    let gateway = Setup::new(engine, oracle.address).set("limit", 64).start();
    std::thread::scope(|scope| {
        for number in 0..16 {
            let gateway = &gateway;
            // Lengths that differ, so that a part of one stream in another is damage.
            scope.spawn(move || there_and_back(gateway, 1_000_000 + number * 77_777));
        }
    });
    gateway.assert_clean();
}

/// P9, T05: a RST in the middle of a response is a RST at the client, never a clean end.
fn a_reset_in_a_response_arrives_as_a_reset(engine: Engine) {
    for length in [0, 1, 100_000] {
        let oracle = Oracle::start(Script::ResetAfter(length));
        let gateway = Setup::new(engine, oracle.address).set("limit", 4).start();
        let mut stream = open(&gateway);
        stream.write_all(b"?").expect("writes");
        let mut bytes = Vec::new();
        let error = stream.read_to_end(&mut bytes).expect_err("a RST, not a clean end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "after {length} bytes");
        until("it is counted", SOON, || gateway.port().outcome("app_reset") == 1);
        gateway.assert_clean();
    }
}

/// P9: a RST of the client is a RST at the application.
fn a_clients_reset_reaches_the_application(engine: Engine) {
    let oracle = Oracle::start(Script::Echo);
    let gateway = Setup::new(engine, oracle.address).set("limit", 4).start();
    let mut stream = open(&gateway);
    stream.write_all(b"x").expect("writes");
    stream.read_exact(&mut [0]).expect("an echo");
    ledger::reset(stream);
    until("the application has noticed", slack(Duration::from_millis(100)), || oracle.count() == 0);
    assert_eq!(oracle.arrivals()[0].end, Some(Err(ErrorKind::ConnectionReset)));
    until("it is counted", SOON, || gateway.port().outcome("client_reset") == 1);
    gateway.assert_clean();
}

/// P9: TLS between client and application is none of our business.
fn tls_passes_untouched(engine: Engine) {
    if !process::installed("openssl") {
        return skip("openssl is not installed");
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (key, cert) = (dir.path().join("key.pem"), dir.path().join("cert.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=tidegate.test", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("openssl runs").success());
    let port = free_port();
    let mut server = Command::new("openssl")
        .args(["s_server", "-quiet", "-rev", "-accept", &format!("127.0.0.1:{port}"), "-key"])
        .arg(&key)
        .arg("-cert")
        .arg(&cert)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl runs");
    until("the server listens", SOON, || TcpStream::connect(("127.0.0.1", port)).is_ok());

    let gateway = Setup::new(engine, format!("127.0.0.1:{port}")).set("limit", 4).start();
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_return_error", "-verify_hostname", "tidegate.test"])
        .args(["-connect", &gateway.address.to_string(), "-CAfile"])
        .arg(&cert)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl runs");
    let mut said = client.stdin.take().expect("piped");
    said.write_all(b"edit\n").expect("writes");
    let mut heard = [0; 5];
    let out = client.stdout.as_mut().expect("piped");
    let read = out.read_exact(&mut heard);
    drop(said);
    let _ = (client.kill(), client.wait(), server.kill(), server.wait());
    read.expect("the reversed line comes back");
    assert_eq!(&heard, b"tide\n");
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// An application behind a unix socket: the same promises, half-close included.
fn a_unix_socket_application(engine: Engine) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("app.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("binds");
    let app = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepts");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("reads to the client's end");
        stream.write_all(&bytes).expect("writes");
    });
    let gateway = Setup::new(engine, format!("unix:{}", path.display())).set("limit", 1).start();
    let mut stream = open(&gateway);
    send_pattern(&mut stream, 100_000);
    until("it is admitted", SOON, || gateway.port().active == 1);
    stream.shutdown(Shutdown::Write).expect("half-close");
    read_pattern(&mut stream, 100_000);
    app.join().expect("no panic");
    gateway.assert_clean();
}

/// `send-proxy-protocol`: version 2, the client's address and ours, then the client's first byte.
fn the_proxy_header_is_exact(engine: Engine) {
    let app = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let gateway = Setup::new(engine, app.local_addr().expect("bound"))
        .set("send-proxy-protocol", true)
        .start();
    let mut stream = open(&gateway);
    stream.write_all(b"!").expect("writes");
    let (mut accepted, _) = app.accept().expect("accepts");
    accepted.set_read_timeout(Some(SOON)).expect("a timeout");
    let mut header = [0; 29];
    accepted.read_exact(&mut header).expect("a header of 28 bytes and one byte");
    let source = stream.local_addr().expect("connected").port().to_be_bytes();
    let target = gateway.address.port().to_be_bytes();
    let mut expected = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    expected.extend([0x21, 0x11, 0, 12, 127, 0, 0, 1, 127, 0, 0, 1]); // PROXY, TCP over IPv4, 12 bytes
    expected.extend(source.iter().chain(&target));
    expected.push(b'!');
    assert_eq!(header.as_slice(), expected);
}

/// T08: a connection on which nobody says anything comes and goes.
fn a_zero_byte_connection(engine: Engine) {
    let oracle = Oracle::start(Script::Echo);
    let gateway = Setup::new(engine, oracle.address).set("limit", 4).start();
    let stream = open(&gateway);
    until("the application has it", SOON, || oracle.count() == 1);
    drop(stream);
    until("the application has seen its end", SOON, || oracle.count() == 0);
    assert_eq!(oracle.arrivals()[0].end, Some(Ok(())));
    until("it is counted", SOON, || gateway.port().outcome("served") == 1);
    gateway.assert_clean();
}

/// T44: FTP's ABOR and telnet's break are sent as urgent. The gateway does not pass on that they are, but the
/// byte itself, in its place, both ways, and at once: also when nothing follows it.
fn an_urgent_byte_stays_in_line(engine: Engine) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let app = listener.local_addr().expect("bound");
    let gateway = Setup::new(engine, app).set("limit", 4).start();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        let hear = |stream: &mut TcpStream, said: &[u8]| {
            let mut heard = vec![0; said.len()];
            stream.read_exact(&mut heard).expect("all of it");
            assert_eq!(heard, said);
        };
        hear(&mut stream, b"ABOR");
        SockRef::from(&stream).send_out_of_band(b"2").expect("writes");
        hear(&mut stream, b"\r\nQUIT");
        stream.write_all(b"26").expect("writes");
        SockRef::from(&stream).send_out_of_band(b"!").expect("writes");
        stream.write_all(b"\r\n").expect("writes");
    });
    let mut client = open(&gateway);
    client.write_all(b"ABO").expect("writes");
    SockRef::from(&client).send_out_of_band(b"R").expect("writes");
    let mut first = [0];
    client.read_exact(&mut first).expect("the answer to it");
    client.write_all(b"\r\nQUI").expect("writes");
    SockRef::from(&client).send_out_of_band(b"T").expect("writes");
    let mut said = first.to_vec();
    client.read_to_end(&mut said).expect("all of it");
    answer.join().expect("no panic");
    assert_eq!(said, b"226!\r\n");
    drop(client);
    gateway.assert_clean();
}
