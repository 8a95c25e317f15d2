//! Lines of a stream that never ends, none longer than a bound.

use bytes::{Buf, BytesMut};

/// What has come and is not a whole line yet.
#[derive(Debug)]
pub(super) struct Lines {
    unread: BytesMut,
    /// How much of `unread` has no newline in it.
    looked: usize,
    most: usize,
}

/// A line is longer than it may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    pub(super) fn new(most: usize) -> Self {
        Self { unread: BytesMut::new(), looked: 0, most }
    }

    /// Take in what has come.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// The next whole line, without its end. To be asked until there is none before more is taken in.
    pub(super) fn next(&mut self) -> Result<Option<BytesMut>, TooLong> {
        let end = self.unread[self.looked..].iter().position(|byte| *byte == b'\n');
        let Some(end) = end.map(|end| self.looked + end) else {
            self.looked = self.unread.len();
            return if self.looked > self.most { Err(TooLong) } else { Ok(None) };
        };
        let line = self.unread.split_to(end);
        self.unread.advance(1);
        self.looked = 0;
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_and_bounded() {
        let mut lines = Lines::new(8);
        for part in [&b"ab"[..], b"c\nd", b"e", b"f\n\ng"] {
            lines.take(part);
        }
        for expected in [&b"abc"[..], b"def", b""] {
            assert_eq!(lines.next().expect("short").expect("whole"), expected);
        }
        assert_eq!(lines.next(), Ok(None));
        lines.take(b"12345678");
        assert_eq!(lines.next(), Err(TooLong));
    }
}
