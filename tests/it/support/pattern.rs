//! An endless stream of bytes in which every position is known: whoever receives it can tell, without a
//! checksum, that nothing was lost, doubled, swapped or changed.

use std::sync::OnceLock;

use super::Rng;

/// The stream repeats after this many bytes: a prime, so that no buffer size divides it.
const PERIOD: usize = 1_048_573;

fn base() -> &'static [u8] {
    static BASE: OnceLock<Vec<u8>> = OnceLock::new();
    BASE.get_or_init(|| {
        let mut rng = Rng::new(1);
        let words = std::iter::repeat_with(|| rng.next().to_le_bytes());
        words.flatten().take(PERIOD).collect()
    })
}

/// Some of the stream from `offset` on: at most `most` bytes, at least one.
pub(crate) fn slice(offset: u64, most: u64) -> &'static [u8] {
    let start = (offset % PERIOD as u64) as usize;
    let end = PERIOD.min(start + most.min(65_536) as usize);
    &base()[start..end]
}

/// Compares what arrives with the stream.
#[derive(Default)]
pub(crate) struct Checker {
    pub(crate) received: u64,
    pub(crate) damaged: bool,
}

impl Checker {
    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let expected = slice(self.received, bytes.len() as u64);
            let (now, later) = bytes.split_at(expected.len());
            self.damaged |= now != expected;
            self.received += now.len() as u64;
            bytes = later;
        }
    }

    #[track_caller]
    pub(crate) fn assert_intact(&self, length: u64) {
        assert_eq!(self.received, length, "bytes received");
        assert!(!self.damaged, "bytes changed on the way");
    }
}
