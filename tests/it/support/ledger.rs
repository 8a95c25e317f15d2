//! The clients' side of the books: every connection has an id and ends in exactly one [`End`].

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::gateway::Gateway;
use super::{SOON, until};

/// How a connection ended, seen by its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// The whole answer, its own id, then FIN.
    Answered,
    /// FIN before the first byte: the polite refusal of TCP.
    Refused,
    /// RST before the first byte.
    Reset,
    /// Nothing came while the client was willing to wait.
    TimedOut,
    /// A part of the answer, or somebody else's: bytes were lost.
    Lost,
    /// The kernel refused the connection: nobody listens.
    NotConnected,
    /// The client left on purpose, whatever would have come.
    Left,
}

/// How many connections ended how.
#[derive(Default, Debug)]
pub(crate) struct Ledger(BTreeMap<End, u64>);

impl Ledger {
    pub(crate) fn enter(&mut self, end: End) {
        *self.0.entry(end).or_default() += 1;
    }

    pub(crate) fn of(&self, end: End) -> u64 {
        self.0.get(&end).copied().unwrap_or(0)
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl FromIterator<End> for Ledger {
    fn from_iter<I: IntoIterator<Item = End>>(ends: I) -> Self {
        let mut ledger = Self::default();
        ends.into_iter().for_each(|end| ledger.enter(end));
        ledger
    }
}

impl std::iter::Sum for Ledger {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        let mut sum = Self::default();
        for (end, count) in parts.flat_map(|part| part.0) {
            *sum.0.entry(end).or_default() += count;
        }
        sum
    }
}

/// One connection with an id of its own. It speaks the words of `Script::Work`: it asks with its id and
/// how long the application should take, and expects the id back, then FIN.
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) stream: TcpStream,
}

impl Client {
    /// Connects, without a word.
    pub(crate) fn connect(to: SocketAddr) -> std::io::Result<Self> {
        Self::connect_from(Ipv4Addr::LOCALHOST.into(), to)
    }

    /// Connects from a loopback address of its own, as another client would.
    pub(crate) fn connect_from(source: IpAddr, to: SocketAddr) -> std::io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if source != IpAddr::V4(Ipv4Addr::LOCALHOST) {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.connect_timeout(&to.into(), SOON)?;
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(SOON))?;
        stream.set_nodelay(true)?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { id, stream })
    }

    /// Connects and asks for an answer after `work`.
    #[track_caller]
    pub(crate) fn asking(to: SocketAddr, work: Duration) -> Self {
        let mut client = Self::connect(to).expect("the gateway listens");
        client.ask(work);
        client
    }

    pub(crate) fn ask(&mut self, work: Duration) {
        let mut request = [0; 16];
        request[..8].copy_from_slice(&self.id.to_le_bytes());
        request[8..].copy_from_slice(&(work.as_millis() as u64).to_le_bytes());
        let _ = self.stream.write_all(&request); // a failure shows in the end
    }

    /// Waits at most `patience` for each read.
    pub(crate) fn patience(self, patience: Duration) -> Self {
        let set = self.stream.set_read_timeout(Some(patience));
        set.expect("patience is not zero");
        self
    }

    /// Reads to the end, ends its own side as clients do, and says how it went.
    pub(crate) fn end(&mut self) -> End {
        let mut answer = Vec::new();
        let read = self.stream.read_to_end(&mut answer);
        let _ = self.stream.shutdown(Shutdown::Both); // it may be reset already
        match read {
            Ok(0) => End::Refused,
            Ok(_) if answer == self.id.to_le_bytes() => End::Answered,
            Ok(_) => End::Lost,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => End::TimedOut,
                _ if !answer.is_empty() => End::Lost,
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => End::Reset,
                other => panic!("a client met {other:?}"),
            },
        }
    }

    pub(crate) fn half_close(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Leaves with a RST.
    pub(crate) fn reset(self) {
        reset(self.stream);
    }
}

/// Closes with a RST.
pub(crate) fn reset(stream: TcpStream) {
    let linger = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    linger.expect("SO_LINGER is always allowed");
}

/// One whole exchange: connect, ask, read to the end.
pub(crate) fn exchange(to: SocketAddr, work: Duration, patience: Duration) -> End {
    match Client::connect(to) {
        Ok(client) => {
            let mut client = client.patience(patience);
            client.ask(work);
            client.end()
        }
        Err(_) => End::NotConnected,
    }
}

/// A closed loop: each of `clients` threads calls `one` with its number until `total` calls were made.
pub(crate) fn closed_loop(
    clients: usize,
    total: usize,
    one: impl Fn(usize, u64) -> End + Sync,
) -> Ledger {
    let started = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|number| {
                let (one, started) = (&one, &started);
                scope.spawn(move || {
                    let mut ledger = Ledger::default();
                    loop {
                        let turn = started.fetch_add(1, Ordering::Relaxed);
                        if turn >= total as u64 {
                            return ledger;
                        }
                        ledger.enter(one(number, turn));
                    }
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|ledger| ledger.expect("a client panicked")).sum()
    })
}

/// Fills a gate for connections in front of `Script::Work`: `limit` say nothing and are let in, then `queue`
/// say nothing and wait. Whoever comes now is refused; once he is, the others ask, and are answered.
#[track_caller]
pub(crate) fn overfill(gateway: &Gateway, to: SocketAddr, limit: u64, queue: u64) -> Ledger {
    let port = || gateway.port_at(to.port());
    let mut holders = Vec::new();
    for (count, what) in [(limit, "the limit is taken"), (queue, "the queue is full")] {
        let more = || Client::connect(to).expect("the gateway listens");
        holders.extend(std::iter::repeat_with(more).take(count as usize));
        let here = holders.len() as u64;
        until(what, SOON, || (port().active, port().queued) == (limit, here - limit));
    }
    let mut ledger = Ledger::default();
    for _ in 0..4 {
        let end = exchange(to, Duration::ZERO, SOON);
        assert_eq!(end, End::Refused, "there is no room: {:?}", port());
        ledger.enter(end);
    }
    for client in &mut holders {
        client.ask(Duration::from_millis(10)); // some work, for the histograms
    }
    for client in &mut holders {
        assert_eq!(client.end(), End::Answered, "{:?}", port());
        ledger.enter(End::Answered);
    }
    ledger
}

/// Reads every client to its end, all at once, while `meanwhile` goes on.
pub(crate) fn end_all_while(clients: &mut [Client], meanwhile: impl FnOnce()) -> Ledger {
    std::thread::scope(|scope| {
        let ends: Vec<_> = clients.iter_mut().map(|client| scope.spawn(|| client.end())).collect();
        meanwhile();
        let ends = ends.into_iter().map(|end| end.join().expect("no panic"));
        ends.collect()
    })
}
