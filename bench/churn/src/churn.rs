//! Connections one after the other on many threads, each with one request, each told apart by how it ended.
//!
//! wrk reports a refused connection as a read error and backs off; here a refusal is an answer like any other. Every
//! connection sends its request at once, as a client that does not know it will be refused would.
//! Latencies are microseconds from before connect to the end.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::percentile;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
const STUCK: Duration = Duration::from_secs(2); // far above any answer on loopback

/// How one connection ended.
enum End {
    Served,
    /// FIN before any byte.
    Closed,
    /// RST before any byte.
    Reset,
    /// No connection: the kernel ran out of ports, or nobody listens.
    Unconnected,
    /// Connected, then neither answered nor refused: an answer cut off, or silence.
    Broken,
}

#[derive(Default)]
struct Tally {
    served: Vec<u32>,
    closed: Vec<u32>,
    reset: Vec<u32>,
    unconnected: u64,
    broken: u64,
}

/// `threads` clients for `seconds`, then one JSON line.
pub fn run(addr: SocketAddr, threads: u32, seconds: f64) {
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(seconds);
    let clients: Vec<_> = (0..threads).map(|_| std::thread::spawn(move || churn(addr, end))).collect();
    let mut all = Tally::default();
    for client in clients {
        let mut one = client.join().expect("a client thread does not panic");
        all.served.append(&mut one.served);
        all.closed.append(&mut one.closed);
        all.reset.append(&mut one.reset);
        all.unconnected += one.unconnected;
        all.broken += one.broken;
    }
    let mut refused = [all.closed.as_slice(), all.reset.as_slice()].concat();
    println!(
        r#"{{"served":{},"closed":{},"reset":{},"unconnected":{},"broken":{},"micros":{},"served_p50":{},"served_p99":{},"refused_p50":{},"refused_p99":{}}}"#,
        all.served.len(),
        all.closed.len(),
        all.reset.len(),
        all.unconnected,
        all.broken,
        begin.elapsed().as_micros(),
        percentile(&mut all.served, 50),
        percentile(&mut all.served, 99),
        percentile(&mut refused, 50),
        percentile(&mut refused, 99),
    );
}

fn churn(addr: SocketAddr, end: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < end {
        let begin = Instant::now();
        let how = one(addr);
        let micros = begin.elapsed().as_micros() as u32;
        match how {
            End::Served => tally.served.push(micros),
            End::Closed => tally.closed.push(micros),
            End::Reset => tally.reset.push(micros),
            End::Unconnected => tally.unconnected += 1,
            End::Broken => tally.broken += 1,
        }
    }
    tally
}

fn one(addr: SocketAddr) -> End {
    let mut stream = match TcpStream::connect(addr) {
        Ok(stream) => stream,
        // A RST can overtake the return of connect: the handshake was complete, and the peer refused.
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted) => return End::Reset,
        Err(_) => return End::Unconnected,
    };
    stream.set_read_timeout(Some(STUCK)).expect("a timeout above zero is always accepted");
    // A refusal may already have come: what was read decides, not whether the write worked.
    let _ = stream.write_all(REQUEST);
    let mut got = 0;
    let mut buf = [0; 4096];
    loop {
        match stream.read(&mut buf) {
            Ok(0) if got == 0 => return End::Closed,
            Ok(0) => return End::Served,
            Ok(n) => got += n,
            Err(e) if e.kind() == ErrorKind::ConnectionReset && got == 0 => return End::Reset,
            Err(_) => return End::Broken,
        }
    }
}
