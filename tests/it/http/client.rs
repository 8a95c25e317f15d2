//! A client that speaks HTTP/1 byte by byte, and the ledger's word for how a request ended.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::gateway::Gateway;
use crate::support::ledger::{self, End, Ledger};
use crate::support::{SOON, pattern, until};

/// One connection, kept alive as long as both want. Each request carries an id of its own in `X-Id`.
pub(crate) struct Http1 {
    pub(crate) stream: TcpStream,
    /// The id of the last request.
    pub(crate) id: u64,
    /// Whether a byte has come since the last request.
    heard: bool,
    unread: Vec<u8>,
}

/// An answer, read to its end.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A number that no other request has.
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Http1 {
    pub(crate) fn try_connect(to: SocketAddr) -> io::Result<Self> {
        let client = ledger::Client::connect(to)?;
        Ok(Self::of(client))
    }

    #[track_caller]
    pub(crate) fn connect(to: SocketAddr) -> Self {
        Self::try_connect(to).expect("the gateway listens")
    }

    #[track_caller]
    pub(crate) fn connect_from(source: IpAddr, to: SocketAddr) -> Self {
        let client = ledger::Client::connect_from(source, to).expect("the gateway listens");
        Self::of(client)
    }

    fn of(client: ledger::Client) -> Self {
        Self { stream: client.stream, id: 0, heard: false, unread: Vec::new() }
    }

    /// Connects and asks, without waiting for the answer.
    #[track_caller]
    pub(crate) fn asking(to: SocketAddr, path: &str) -> Self {
        let mut client = Self::connect(to);
        client.ask(path, "");
        client
    }

    pub(crate) fn patience(self, patience: Duration) -> Self {
        self.stream.set_read_timeout(Some(patience)).expect("patience is not zero");
        self
    }

    /// Bytes as they are. A failure shows when the answer is read.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// A GET; `more` are further header lines, each with its CRLF.
    pub(crate) fn ask(&mut self, path: &str, more: &str) {
        self.begin("GET", path, more);
    }

    /// The head of a request.
    pub(crate) fn begin(&mut self, method: &str, path: &str, more: &str) {
        self.id = next_id();
        self.heard = !self.unread.is_empty();
        let id = self.id;
        self.send(format!("{method} {path} HTTP/1.1\r\nHost: app\r\nX-Id: {id}\r\n{more}\r\n"));
    }

    /// A GET and its answer.
    #[track_caller]
    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.ask(path, "");
        self.answer().unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// A GET of somebody who answers to that name only.
    #[track_caller]
    pub(crate) fn get_from(&mut self, host: &str, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        self.answer().unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// A POST of a whole body and its answer.
    #[track_caller]
    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> Answer {
        self.begin("POST", path, &format!("Content-Length: {}\r\n", body.len()));
        self.send(body);
        self.answer().unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// The answer to the last request, which was no HEAD. Informational ones are left out.
    pub(crate) fn answer(&mut self) -> io::Result<Answer> {
        self.answer_to("GET")
    }

    pub(crate) fn answer_to(&mut self, method: &str) -> io::Result<Answer> {
        let mut answer = self.head()?;
        while answer.status < 200 && answer.status != 101 {
            answer = self.head()?;
        }
        let mut body = Vec::new();
        self.body_of(&mut answer, method, &mut |part| body.extend_from_slice(part))?;
        answer.body = body;
        Ok(answer)
    }

    /// The next head, informational or not.
    pub(crate) fn head(&mut self) -> io::Result<Answer> {
        let line = self.line()?;
        let bad = || io::Error::new(ErrorKind::InvalidData, format!("no status line: {line:?}"));
        let (_, rest) = line.split_once(' ').ok_or_else(bad)?;
        let status = rest.get(..3).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
        let mut answer = Answer { status, ..Answer::default() };
        answer.headers = self.fields()?;
        Ok(answer)
    }

    /// Reads the body that follows a final head, part by part; the trailers go into `answer`.
    pub(crate) fn body_of(
        &mut self,
        answer: &mut Answer,
        method: &str,
        take: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        if method == "HEAD" || matches!(answer.status, 101 | 204 | 304) {
            return Ok(());
        }
        if answer.header("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            loop {
                let line = self.line()?;
                let size = u64::from_str_radix(line.trim(), 16)
                    .map_err(|_| io::Error::new(ErrorKind::InvalidData, line))?;
                if size == 0 {
                    answer.trailers = self.fields()?;
                    return Ok(());
                }
                self.exactly(size, take)?;
                self.exactly(2, &mut |_| {})?;
            }
        }
        if let Some(length) = answer.header("content-length") {
            let length = length.parse().map_err(|_| ErrorKind::InvalidData)?;
            return self.exactly(length, take);
        }
        take(&std::mem::take(&mut self.unread));
        let mut rest = [0; 65_536];
        loop {
            match self.stream.read(&mut rest)? {
                0 => return Ok(()),
                count => {
                    self.heard = true;
                    take(&rest[..count]);
                }
            }
        }
    }

    fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or(ErrorKind::InvalidData)?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.unread.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.more()?;
        }
    }

    fn exactly(&mut self, length: u64, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.unread.is_empty() {
                self.more()?;
            }
            let count = self.unread.len().min(left.min(1 << 30) as usize);
            take(&self.unread[..count]);
            self.unread.drain(..count);
            left -= count as u64;
        }
        Ok(())
    }

    fn more(&mut self) -> io::Result<()> {
        let mut bytes = [0; 65_536];
        match self.stream.read(&mut bytes)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            count => {
                self.heard = true;
                self.unread.extend_from_slice(&bytes[..count]);
                Ok(())
            }
        }
    }

    /// Some bytes of a tunnel.
    pub(crate) fn raw(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.exactly(length as u64, &mut |part| bytes.extend_from_slice(part))?;
        Ok(bytes)
    }

    /// Whether the other side has closed, and said nothing more.
    pub(crate) fn closed(&mut self) -> bool {
        self.unread.is_empty()
            && match self.stream.read(&mut [0]) {
                Ok(count) => count == 0,
                Err(error) => error.kind() == ErrorKind::ConnectionReset,
            }
    }

    /// Whether `error`, which is all there was instead of an answer, means that the connection was closed before
    /// a byte of one: as it looks when a request and the end of a kept connection cross.
    pub(crate) fn was_closed_unheard(&self, error: &io::Error) -> bool {
        let ends = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        !self.heard && ends.contains(&error.kind())
    }

    /// The ledger's word for the answer to the last request: `Answered` is a 200 with our own id,
    /// `Refused` a refusal with all its headers.
    pub(crate) fn end(&mut self) -> End {
        match self.answer() {
            Ok(answer) => self.end_of(&answer),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => End::TimedOut,
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => End::Reset,
                _ => End::Lost,
            },
        }
    }

    fn end_of(&self, answer: &Answer) -> End {
        let own = answer.header("x-id") == Some(self.id.to_string().as_str());
        match answer.status {
            200 if own => End::Answered,
            503 | 429 if wrong_with(answer).is_none() => End::Refused,
            _ => End::Lost,
        }
    }

    /// Leaves with a RST.
    pub(crate) fn reset(self) {
        ledger::reset(self.stream);
    }
}

/// What a refusal lacks, if anything.
pub(crate) fn wrong_with(answer: &Answer) -> Option<String> {
    let retry = answer.header("retry-after").and_then(|value| value.parse::<u32>().ok());
    let status = answer.header("proxy-status").is_some_and(|value| value.starts_with("tidegate; "));
    let id = answer.header("x-request-id").is_some_and(|value| !value.is_empty());
    let kind = answer.header("content-type").is_some();
    let right = retry.is_some() && status && id && kind && !answer.body.is_empty();
    (!right).then(|| format!("a refusal that lacks something: {answer:?} {}", answer.text()))
}

/// A refusal as it should be: its status, and what its `Proxy-Status` says.
#[track_caller]
pub(crate) fn assert_refusal(answer: &Answer, status: u16, error: &str, details: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    if let Some(wrong) = wrong_with(answer) {
        panic!("{wrong}");
    }
    let said = answer.header("proxy-status").expect("just seen");
    assert_eq!(said, format!("tidegate; error={error}; details=\"{details}\""));
}

/// As [`ledger::overfill`], in front of what answers `/up` when it has the whole body: who holds a slot, and
/// who waits for one, has sent half of it.
#[track_caller]
pub(crate) fn overfill(gateway: &Gateway, to: SocketAddr, limit: u64, queue: u64) -> Ledger {
    let port = || gateway.port_at(to.port());
    let mut holders = Vec::new();
    for (count, what) in [(limit, "the limit is taken"), (queue, "the queue is full")] {
        for _ in 0..count {
            let mut client = Http1::connect(to);
            client.begin("POST", "/up", "Content-Length: 2\r\nConnection: close\r\n");
            client.send(pattern::slice(0, 1));
            holders.push(client);
        }
        let here = holders.len() as u64;
        until(what, SOON, || (port().active, port().queued) == (limit, here - limit));
    }
    let mut ledger = Ledger::default();
    for _ in 0..4 {
        let end = exchange(to, "/", SOON);
        assert_eq!(end, End::Refused, "there is no room: {:?}", port());
        ledger.enter(end);
    }
    for client in &mut holders {
        client.send(pattern::slice(1, 1));
    }
    for client in &mut holders {
        assert_eq!(client.end(), End::Answered, "{:?}", port());
        ledger.enter(End::Answered);
    }
    ledger
}

/// One whole exchange on a connection of its own.
pub(crate) fn exchange(to: SocketAddr, path: &str, patience: Duration) -> End {
    match Http1::try_connect(to) {
        Ok(client) => {
            let mut client = client.patience(patience);
            client.ask(path, "");
            client.end()
        }
        Err(_) => End::NotConnected,
    }
}
