//! Clients that come whether or not earlier ones were served, each once, and leave when their patience ends.
//!
//! Every time counts from when the client was due, not from when this machine got round to it. What ends inside the measured
//! span is counted; arrivals begin before it, so that it begins in the middle of the storm, and go on to its end.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout_at;

use crate::percentile;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
const SOURCES: u32 = 64; // addresses the clients come from, so that TIME_WAITs never use up the ports

pub struct Storm {
    pub addr: SocketAddr,
    /// Arrivals per second, evenly spaced.
    pub rate: u32,
    pub warm: Duration,
    pub measured: Duration,
    pub patience: Duration,
}

/// How one client fared.
enum End {
    /// A whole 200.
    Served,
    /// A whole 503 or 429.
    Refused { retry_after: bool },
    GaveUp,
    Unconnected,
    /// Connected, then cut off or answered with something else.
    Broken,
}

#[derive(Default)]
struct Tally {
    served: Vec<u32>,
    refused: Vec<u32>,
    retry_after: u64,
    gave_up: u64,
    unconnected: u64,
    broken: u64,
    /// Served also outside the measured span.
    served_ever: u64,
    /// How late clients were sent, microseconds: what the generator itself adds.
    late: Vec<u32>,
}

pub fn run(storm: Storm) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a process may have an epoll instance");
    let mut tally = LocalSet::new().block_on(&runtime, rage(&storm));
    println!(
        r#"{{"served":{},"refused":{},"retry_after":{},"gave_up":{},"unconnected":{},"broken":{},"served_ever":{},"micros":{},"served_p50":{},"served_p99":{},"refused_p50":{},"refused_p99":{},"late_p99":{}}}"#,
        tally.served.len(),
        tally.refused.len(),
        tally.retry_after,
        tally.gave_up,
        tally.unconnected,
        tally.broken,
        tally.served_ever,
        storm.measured.as_micros(),
        percentile(&mut tally.served, 50),
        percentile(&mut tally.served, 99),
        percentile(&mut tally.refused, 50),
        percentile(&mut tally.refused, 99),
        percentile(&mut tally.late, 99),
    );
}

async fn rage(storm: &Storm) -> Tally {
    let tally = Rc::new(RefCell::new(Tally::default()));
    let begin = Instant::now();
    let from = begin + storm.warm;
    let to = from + storm.measured;
    let (addr, patience) = (storm.addr, storm.patience);
    let mut arrivals = arrivals(begin, to, storm.rate);
    let mut number = 0;
    while let Some(due) = arrivals.recv().await {
        number += 1;
        tally.borrow_mut().late.push(due.elapsed().as_micros() as u32);
        let tally = tally.clone();
        spawn_local(async move {
            let end = timeout_at((due + patience).into(), one(addr, number)).await.unwrap_or(End::GaveUp);
            let now = Instant::now();
            tally.borrow_mut().enter(end, now - due, from <= now && now < to);
        });
    }
    Rc::try_unwrap(tally).map(RefCell::into_inner).unwrap_or_else(|tally| tally.take())
}

/// Due times, sent when they come, by a thread: the runtime's own clock ticks in milliseconds.
fn arrivals(begin: Instant, to: Instant, rate: u32) -> mpsc::UnboundedReceiver<Instant> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        for number in 0u64.. {
            let due = begin + Duration::from_nanos(number * 1_000_000_000 / u64::from(rate));
            if due >= to {
                thread::sleep(to.saturating_duration_since(Instant::now()));
                break;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.send(due).is_err() {
                break;
            }
        }
    });
    receiver
}

async fn one(addr: SocketAddr, number: u32) -> End {
    match connect(addr, number).await {
        Ok(stream) => ask(stream).await.unwrap_or(End::Broken),
        Err(_) => End::Unconnected,
    }
}

async fn connect(addr: SocketAddr, number: u32) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let source = Ipv4Addr::new(127, 0, 30, (1 + number % SOURCES) as u8);
    socket.bind((source, 0).into())?;
    socket.connect(addr).await
}

async fn ask(mut stream: TcpStream) -> io::Result<End> {
    stream.write_all(REQUEST).await?;
    let mut read = Vec::with_capacity(1024);
    loop {
        if let Some(end) = ended(&read) {
            return Ok(end);
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(End::Broken);
        }
    }
}

/// How it ended, once the answer is whole: its head, and its body by Content-Length (chunks are not understood: broken).
fn ended(read: &[u8]) -> Option<End> {
    let head = read.windows(4).position(|four| four == b"\r\n\r\n")?;
    let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim));
    let Some(length) = field("content-length").and_then(|length| length.parse::<usize>().ok()) else { return Some(End::Broken) };
    if read.len() < head + 4 + length {
        return None;
    }
    Some(match text.split(' ').nth(1) {
        Some("200") => End::Served,
        Some("503" | "429") => End::Refused { retry_after: field("retry-after").is_some() },
        _ => End::Broken,
    })
}

impl Tally {
    fn enter(&mut self, end: End, took: Duration, measured: bool) {
        self.served_ever += u64::from(matches!(end, End::Served));
        if !measured {
            return;
        }
        let micros = took.as_micros() as u32;
        match end {
            End::Served => self.served.push(micros),
            End::Refused { retry_after } => {
                self.refused.push(micros);
                self.retry_after += u64::from(retry_after);
            }
            End::GaveUp => self.gave_up += 1,
            End::Unconnected => self.unconnected += 1,
            End::Broken => self.broken += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_judged_when_it_is_whole() {
        let refused = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\ncontent-length: 5\r\n\r\nbusy\n";
        assert!(matches!(ended(refused), Some(End::Refused { retry_after: true })));
        assert!(ended(&refused[..refused.len() - 1]).is_none());
        assert!(ended(b"HTTP/1.1 200 OK\r\nContent-Len").is_none());
        assert!(matches!(ended(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Some(End::Served)));
        assert!(matches!(ended(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"), Some(End::Broken)));
    }
}
