//! Frames: what hyper and h2 do not say of what the client of an HTTP/2 connection sends. Whether a head is on
//! its way, or a frame that holds up all the others; and whether more and more comes that is work and nothing
//! else.
//!
//! Always true: only the heads of frames are looked at, never what they carry. What is wrong with them is for
//! h2 to say.

use std::time::{Duration, Instant};

/// The client's preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// The head of a frame (section 4.1): three bytes of length, type, flags, four of stream.
const HEAD: usize = 9;
const TYPE: usize = 3;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// So many frames that bring no request forward in so long are a flood. A client that measures its link, or
/// keeps a connection open, sends fewer, and the rest of its time data.
const MOST: u32 = 1000;
const MEANWHILE: Duration = Duration::from_secs(10);

/// What one such frame has us write at most: the answer to a PING.
const ANSWER: u64 = 17;

/// Of bytes that a client gets it gives leave for more. No client does for every four bytes, which is less
/// than a frame of one.
const BYTES_PER_UPDATE: u64 = 4;

/// What a client has sent so far.
pub struct Frames {
    /// What is still to come of the preface.
    preface: usize,
    /// The head of the frame that is coming, as far as it is here.
    head: [u8; HEAD],
    known: usize,
    /// What is still to come of what it carries.
    rest: usize,
    /// A frame has come to its end.
    greeted: bool,
    /// Fields have begun, and are to go on in another frame.
    unfinished: bool,
    /// The last request whose head is whole.
    last: u32,
    idle: Idle,
}

/// Frames that bring nothing forward.
struct Idle {
    /// Since the last one that did.
    count: u32,
    since: Instant,
    /// What had been written then.
    written: u64,
    /// Leaves to send more, from the beginning.
    updates: u64,
}

/// More frames than anybody needs.
#[derive(Debug, thiserror::Error)]
#[error("the client sends frame after frame that is no part of a request")]
pub struct Flood;

impl Frames {
    /// Nothing has come.
    pub const fn new(now: Instant) -> Self {
        Self {
            preface: PREFACE,
            head: [0; HEAD],
            known: 0,
            rest: 0,
            greeted: false,
            unfinished: false,
            last: 0,
            idle: Idle { count: 0, since: now, written: 0, updates: 0 },
        }
    }

    /// These came; so much has been `written` to the client. Whether something that was open has come to its end.
    pub fn take(&mut self, mut bytes: &[u8], written: u64) -> Result<bool, Flood> {
        let mut closed = false;
        bytes = &bytes[skip(&mut self.preface, bytes.len())..];
        while !bytes.is_empty() {
            if self.known < HEAD {
                let length = bytes.len().min(HEAD - self.known);
                self.head[self.known..self.known + length].copy_from_slice(&bytes[..length]);
                self.known += length;
                bytes = &bytes[length..];
                if self.known < HEAD {
                    break;
                }
                let [high, middle, low, ..] = self.head;
                self.rest = u32::from_be_bytes([0, high, middle, low]) as usize;
                self.judge(written)?;
            }
            bytes = &bytes[skip(&mut self.rest, bytes.len())..];
            if self.rest == 0 {
                self.end();
                closed |= !self.is_open();
            }
        }
        Ok(closed)
    }

    /// Whether something is on its way that has to come to its end soon: the client's greeting, a head, any
    /// frame but one of a body, for which there is another clock.
    pub fn is_open(&self) -> bool {
        let partial =
            self.known > TYPE && self.head[TYPE] != DATA || (1..=TYPE).contains(&self.known);
        !self.greeted || self.unfinished || partial
    }

    /// The last request whose head is whole.
    pub const fn last(&self) -> u32 {
        self.last
    }

    /// The head of a frame is here.
    fn judge(&mut self, written: u64) -> Result<(), Flood> {
        let idle = &mut self.idle;
        match self.head[TYPE] {
            DATA if self.rest > 0 => idle.count = 0,
            // Both have bounds of their own.
            HEADERS => idle.count = 0,
            CONTINUATION => {}
            WINDOW_UPDATE => {
                idle.updates += 1;
                if idle.updates > u64::from(MOST) + written / BYTES_PER_UPDATE {
                    return Err(Flood);
                }
            }
            _ => idle.count += 1,
        }
        if idle.count <= MOST {
            return Ok(());
        }
        let now = Instant::now();
        // Answers are on their way, if more was written than what these had us write.
        let answers = written - idle.written > u64::from(2 * MOST) * ANSWER;
        if !answers && now < idle.since + MEANWHILE {
            return Err(Flood);
        }
        (idle.count, idle.since, idle.written) = (0, now, written);
        Ok(())
    }

    /// A frame has come to its end.
    fn end(&mut self) {
        let [_, _, _, kind, flags, stream @ ..] = self.head;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.unfinished = flags & END_HEADERS == 0;
            if !self.unfinished {
                self.last = self.last.max(u32::from_be_bytes(stream) & (u32::MAX >> 1));
            }
        }
        self.greeted = true;
        self.known = 0;
    }
}

/// So many of `length` bytes are part of what is to come, and have come now.
fn skip(to_come: &mut usize, length: usize) -> usize {
    let skipped = length.min(*to_come);
    *to_come -= skipped;
    skipped
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn greeted() -> Frames {
        let mut frames = Frames::new(Instant::now());
        assert!(frames.take(GREETING, 0).expect("no flood"));
        assert!(!frames.is_open());
        frames
    }

    #[test]
    fn a_greeting_a_head_and_a_frame_are_open_until_their_last_byte() {
        let mut frames = Frames::new(Instant::now());
        let all = [
            GREETING,
            &frame(HEADERS, 0, 1, b"fields"),
            &frame(CONTINUATION, 0, 1, b""),
            &frame(CONTINUATION, END_HEADERS, 1, b"more"),
            &frame(PING, 0, 0, b"12345678"),
        ];
        for (at, bytes) in all.concat().iter().enumerate() {
            let whole = [all[0].len(), all[..4].concat().len(), all.concat().len()];
            let closed = frames.take(&[*bytes], 0).expect("no flood");
            assert_eq!(
                (closed, !frames.is_open()),
                ([whole.contains(&(at + 1)); 2].into()),
                "{at}"
            );
        }
        assert_eq!(frames.last(), 1);
    }

    #[test]
    fn a_body_has_a_clock_of_its_own() {
        let mut frames = greeted();
        let body = frame(DATA, 0, 1, b"a part");
        assert!(!frames.take(&body[..TYPE + 1], 0).expect("no flood"));
        assert!(!frames.is_open());
        assert!(frames.take(&body[TYPE + 1..], 0).expect("no flood"));
        assert!(!frames.is_open());
    }

    #[test]
    fn what_ends_and_begins_in_one_read_is_open_since_then() {
        let mut frames = greeted();
        let head = frame(HEADERS, END_HEADERS, 3, b"fields");
        assert!(!frames.take(&head[..12], 0).expect("no flood"));
        let read = [&head[12..], &head[..10]].concat();
        assert!(frames.take(&read, 0).expect("no flood"), "the first is whole");
        assert!(frames.is_open());
        assert_eq!(frames.last(), 3);
    }

    #[test]
    fn frames_that_are_no_part_of_a_request_are_counted() {
        let ping = frame(PING, 0, 0, b"12345678");
        let data = frame(DATA, 0, 1, b"x");
        let times = |frame: &[u8], times: u32| frame.repeat(times as usize);
        // The greeting is one of them.
        greeted().take(&times(&ping, MOST - 1), 0).expect("as many as that");
        greeted().take(&times(&ping, MOST), 0).expect_err("and no more");
        let mixed = [&times(&ping, MOST - 1)[..], &data, &times(&ping, MOST)].concat();
        greeted().take(&mixed, 0).expect("with something between them");
        // Answering them is no answer to a request; more is.
        let answered = u64::from(MOST) * ANSWER;
        greeted().take(&times(&ping, MOST + 1), answered).expect_err("a flood");
        greeted().take(&times(&ping, MOST + 1), 3 * answered).expect("a download");
    }

    #[test]
    fn leave_to_send_more_is_given_for_what_came() {
        let update = frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\x01");
        let updates = update.repeat(MOST as usize + 1);
        greeted().take(&updates, 0).expect_err("a flood");
        greeted().take(&updates, 100).expect("a download");
    }
}
