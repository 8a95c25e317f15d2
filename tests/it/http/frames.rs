//! HTTP/2 frame by frame, for what no library would send.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::SOON;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// How HPACK writes `:status: 200`, first in a block.
pub(crate) const STATUS_200: u8 = 0x88;
/// And `:status: 431`: the name is its eighth, the value is compressed.
pub(crate) const STATUS_431: [u8; 5] = [0x48, 0x83, 0x69, 0x90, 0xff];

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Fields as HPACK literals that are never indexed and not compressed.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "a length in one byte");
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The head of a request.
pub(crate) fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields =
        vec![(":method", method), (":scheme", "http"), (":path", path), (":authority", "app")];
    fields.extend_from_slice(more);
    block(&fields)
}

/// A connection that has sent its preface.
pub(crate) struct Raw(pub(crate) TcpStream);

/// A frame that came.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Four bytes of its payload as a number: of a GOAWAY the last stream is at 0, the error at 4.
    pub(crate) fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("4 bytes"))
    }

    /// Whether it ends its stream as its sender wanted.
    pub(crate) fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

impl Raw {
    #[track_caller]
    pub(crate) fn connect(to: SocketAddr) -> Self {
        Self::try_connect(to).expect("the gateway listens")
    }

    pub(crate) fn try_connect(to: SocketAddr) -> io::Result<Self> {
        let mut raw = Self(TcpStream::connect(to)?);
        raw.0.set_nodelay(true)?;
        raw.0.set_read_timeout(Some(SOON))?;
        let preface =
            [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, b"")[..]].concat();
        raw.send(&preface)?;
        Ok(raw)
    }

    /// A request that is only a head.
    pub(crate) fn ask(&mut self, stream: u32, path: &str, more: &[(&str, &str)]) -> io::Result<()> {
        let head = request("GET", path, more);
        self.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head))
    }

    /// Answers a PING, if it is one that wants it.
    pub(crate) fn pong(&mut self, to: &Frame) -> io::Result<()> {
        match to.kind == PING && to.flags & ACK == 0 {
            true => self.send(&frame(PING, ACK, 0, &to.payload)),
            false => Ok(()),
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    pub(crate) fn read(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload)?;
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads until GOAWAY or the end; the error code of the GOAWAY, if there was one.
    pub(crate) fn goaway(&mut self, patience: Duration) -> Result<Option<u32>, io::Error> {
        self.0.set_read_timeout(Some(patience)).expect("patience is not zero");
        loop {
            match self.read() {
                Ok(frame) if frame.kind == GOAWAY => return Ok(Some(frame.number(4))),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Err(error),
                    _ => return Ok(None), // closed
                },
            }
        }
    }

    /// Bytes that came and nobody wants, without waiting.
    pub(crate) fn discard(&mut self) -> io::Result<usize> {
        self.0.set_nonblocking(true)?;
        let mut sink = [0; 65_536];
        let read = self.0.read(&mut sink);
        self.0.set_nonblocking(false)?;
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(1),
            other => other,
        }
    }
}
