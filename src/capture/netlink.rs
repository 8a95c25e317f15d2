//! Netlink: messages of attributes to the kernel and back. Only what nftables and the socket table
//! need, so that the binary stays free of C libraries.
//!
//! Layouts: `linux/netlink.h`. Everything is in host order unless a caller says otherwise.

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// `nfnetlink` and `sock_diag`, of `linux/netlink.h`.
pub(super) const NETFILTER: i32 = libc::NETLINK_NETFILTER;
pub(super) const SOCK_DIAG: i32 = libc::NETLINK_SOCK_DIAG;

pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const DUMP: u16 = 0x300;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;

/// The kernel answers within the call; whoever waits longer waits for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// A socket to one part of the kernel.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
}

/// A message being written.
#[derive(Clone, Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

/// A message that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

impl Message {
    /// `fixed`: what comes before the attributes.
    pub(super) fn new(kind: u16, flags: u16, sequence: u32, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    /// One attribute.
    pub(super) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// A number, in network order as netfilter has it.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// A text, with its final zero.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.put(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Attributes within an attribute.
    pub(super) fn nest(mut self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let inner = inner(Self { bytes: Vec::new() });
        self.push(kind | NESTED, &inner.bytes);
        self
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).expect("lists are bounded to fit");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The bytes, with the length in their header.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("messages are short");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

impl Netlink {
    /// A socket of the kernel's part `protocol`.
    pub(super) fn open(protocol: i32) -> io::Result<Self> {
        let netlink = Domain::from(libc::AF_NETLINK);
        let socket = Socket::new(netlink, Type::RAW, Some(Protocol::from(protocol)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Send `bytes`, one or more messages, in one go.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match self.socket.send(bytes)? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Hand every message that comes to `each` until the dump is done or `each` says so with `true`.
    /// The error of a message is an error here.
    pub(super) fn receive(
        &self,
        mut each: impl FnMut(Received<'_>) -> bool,
    ) -> Result<(), (u32, io::Error)> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = (&self.socket).read(&mut buffer).map_err(|error| (0, error))?;
            for message in received(&buffer[..length]) {
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => match number_of(message.body) {
                        Some(0) => {}
                        Some(errno) => {
                            let error = io::Error::from_raw_os_error(errno.wrapping_neg());
                            return Err((message.sequence, error));
                        }
                        None => return Err((0, io::ErrorKind::InvalidData.into())),
                    },
                    _ => {}
                }
                if each(message) {
                    return Ok(());
                }
            }
        }
    }
}

impl Received<'_> {
    /// Whether this says that the message `sequence` was carried out.
    pub(super) fn acknowledges(&self, sequence: u32) -> bool {
        self.kind == NLMSG_ERROR && self.sequence == sequence
    }
}

fn number_of(bytes: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// The messages in what was read; what is cut off is left out.
pub(super) fn received(mut rest: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(rest.get(8..12)?.try_into().ok()?);
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received { kind, sequence, body })
    })
}

/// The attributes in a body, each with its type and value.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The attribute of that type.
pub(super) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// A number in network order.
pub(super) fn be_number(bytes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attribute(bytes, kind)?.try_into().ok()?))
}

/// A text without its final zero.
pub(super) fn text(bytes: &[u8], kind: u16) -> Option<&str> {
    let value = attribute(bytes, kind)?;
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let message = Message::new(7, REQUEST, 3, &[1, 0, 0, 0])
            .text(1, "abc")
            .nest(2, |inner| inner.number(9, 5).put(10, &[1, 2, 3]));
        let bytes = message.into_bytes();
        assert_eq!(bytes.len() % 4, 0);
        let read: Vec<_> = received(&bytes).collect();
        assert_eq!((read.len(), read[0].kind, read[0].sequence), (1, 7, 3));
        let attrs = &read[0].body[4..];
        assert_eq!(text(attrs, 1), Some("abc"));
        let inner = attribute(attrs, 2).expect("there");
        assert_eq!(be_number(inner, 9), Some(5));
        assert_eq!(attribute(inner, 10), Some(&[1, 2, 3][..]));
        assert_eq!(attribute(inner, 11), None);
    }

    #[test]
    fn what_is_cut_off_ends_the_reading() {
        let whole = Message::new(7, REQUEST, 3, &[]).text(1, "abcdefgh").into_bytes();
        for length in 0..whole.len() - 3 {
            // the last three only fill up
            assert_eq!(received(&whole[..length]).count(), 0, "{length}");
            let attrs = whole.get(HEADER..length).unwrap_or_default();
            assert_eq!(attributes(attrs).count(), 0, "{length}");
        }
    }
}
