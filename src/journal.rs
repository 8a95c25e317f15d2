//! The journal: what was refused or broke of late, and with which numbers, so that somebody who was
//! refused can be told why. `tidegate explain` reads it, one log line a second and class comes from it.
//!
//! ```text
//!             ┌ refused  the last 8192 refusals
//!   note() ───┼ broken   the last 1024 that their clients or the application broke off, or that are no requests
//!             └ told     the last 512 that were the first of their class in their second
//! ```
//!
//! Always true: only what does not end well comes here; a note costs a copy of some three hundred
//! bytes under a lock that nobody holds for longer than such a copy; memory is bounded, and taken
//! only when there is something to write down. A storm pushes out old notes, but not all: of every
//! second and class one stays longer, the one that also has a log line.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::capture::origin::Astray;
use crate::escape::Shown;
use crate::outcome::Outcome;

/// Some seconds of a storm, some days of quiet; 3 MiB at most.
const REFUSED: usize = 8192;

/// What clients break off must not push out what we have decided.
const BROKEN: usize = 1024;

/// Ten minutes of one reason, or one of ten.
const TOLD: usize = 512;

/// Memory is taken for so many notes at once.
const CHUNK: usize = 256;

/// Names longer than this are cut: our own have 32 characters, a UUID has 36.
pub const ID_LENGTH: usize = 64;

/// Enough of a path to recognise it.
pub const PATH_LENGTH: usize = 64;

/// The longest method of WebDAV fits.
pub const METHOD_LENGTH: usize = 16;

/// A time between two moments, in seconds: half the size of a [`Duration`], and exact enough.
type Seconds = f32;

/// Everything that is known about one refusal, or about something that broke.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    /// When it was decided, or ended.
    pub at: Instant,
    /// What became of it.
    pub outcome: Outcome,
    /// Of a captured connection that no gate was asked about: why it had nowhere to go.
    pub astray: Option<Astray>,
    /// The port it came to.
    pub port: SocketAddr,
    /// Who it was from.
    pub client: Option<SocketAddr>,
    /// The connection, as the list of connections and the log have it.
    pub connection: u64,
    /// The request; `None`: the connection itself was the unit.
    pub request: Option<Request>,
    /// How long it had been there.
    pub lasted: Seconds,
    /// How long it waited for a slot.
    pub waited: Seconds,
    /// The gate, right after the decision.
    pub numbers: Numbers,
}

/// A request, as far as it is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// `x-request-id`, the client's or ours.
    pub id: Text<ID_LENGTH>,
    /// Empty where the request was already on its way to the application.
    pub method: Text<METHOD_LENGTH>,
    /// Without its query, which may hold what is nobody's business.
    pub path: Text<PATH_LENGTH>,
    /// How long its client would have waited, if it said so.
    pub deadline: Option<Seconds>,
    /// The status it was answered with; 0: none.
    pub status: u16,
    /// What gRPC calls the status.
    pub grpc_status: Option<u8>,
    /// When it was told to come again.
    pub retry_after: Option<Seconds>,
    /// How long requests took of late.
    pub mean: Option<Seconds>,
}

/// The gate at one moment, as far as it explains a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Numbers {
    /// Slots; `None`: as many as come.
    pub limit: Option<u32>,
    /// Slots in use.
    pub active: u32,
    /// Who waited.
    pub queued: u32,
    /// Places to wait in.
    pub queue_length: u32,
    /// The longest wait allowed.
    pub queue_timeout: Seconds,
    /// What this client had, active and waiting, if there is a cap on that.
    pub of_client: Option<u32>,
    /// That cap.
    pub per_client_limit: Option<u32>,
    /// Connections the gateway held, and how many it may.
    pub open: u32,
    /// How many it may.
    pub max_connections: u32,
}

/// A few bytes of a stranger's, cut at `N`.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    length: u8,
    cut: bool,
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The most recent.
    pub note: Note,
    /// How many there are of that name, this one included.
    pub of_that_name: usize,
}

/// How far back the journal goes.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// When it began.
    pub begun: SystemTime,
    /// What was ever written down.
    pub noted: u64,
    /// Since when nothing is missing.
    pub reaches: Reaches,
}

/// Since when nothing is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaches {
    /// Since it began: nothing has been pushed out.
    Everything,
    /// Of the time before that moment some is gone.
    Since(Instant),
}

/// The journal of one process.
#[derive(Debug)]
pub struct Journal {
    begun: (Instant, SystemTime),
    noted: AtomicU64,
    refused: Ring,
    broken: Ring,
    told: Ring,
    pace: Pace,
}

/// The last so many notes.
#[derive(Debug)]
struct Ring {
    chunks: Box<[OnceLock<Box<Chunk>>]>,
    next: AtomicU64,
}

/// Each place has its own lock, so that who writes meets who reads only on one note.
type Chunk = [Mutex<Option<Numbered>>; CHUNK];

/// A note and its number; none has the same.
#[derive(Clone, Copy, Debug)]
struct Numbered(u64, Note);

/// Which notes are worth a line: of each class the first in every second. One word per class: the
/// second in the high half, and in the low half how many came after the first.
#[derive(Debug)]
struct Pace(Box<[AtomicU64]>);

impl<const N: usize> Text<N> {
    /// Nothing.
    pub const EMPTY: Self = Self { bytes: [0; N], length: 0, cut: false };

    /// As much as fits.
    pub fn of(bytes: &[u8]) -> Self {
        let mut text = Self::EMPTY;
        let length = bytes.len().min(N).min(usize::from(u8::MAX));
        text.bytes[..length].copy_from_slice(&bytes[..length]);
        text.length = length as u8; // at most 255, just seen to
        text.cut = length < bytes.len();
        text
    }

    /// What was kept.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// For people.
    pub fn shown(&self) -> Shown<'_> {
        if self.cut { Shown::cut(self.bytes()) } else { Shown::all(self.bytes()) }
    }

    /// Whether this is `name`: the bytes themselves, or what was shown of them.
    fn is(&self, name: &str) -> bool {
        let begins = name.as_bytes().starts_with(self.bytes());
        let same = begins && (self.cut || name.len() == self.bytes().len());
        same || (name.contains(['\\', '…']) && self.shown().to_string() == name)
    }
}

impl<const N: usize> std::fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.shown())
    }
}

impl Note {
    /// Whether `name` is its request's or its connection's.
    fn is(&self, name: &str) -> bool {
        // Without an id it is known by its connection alone.
        let named = self.request.as_ref().filter(|request| !request.id.bytes().is_empty());
        let request = named.is_some_and(|request| request.id.is(name));
        request || name.parse() == Ok(self.connection)
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            begun: (Instant::now(), SystemTime::now()),
            noted: AtomicU64::new(0),
            refused: Ring::of(REFUSED),
            broken: Ring::of(BROKEN),
            told: Ring::of(TOLD),
            pace: Pace(Outcome::all().map(|_| AtomicU64::new(0)).collect()),
        }
    }
}

impl Journal {
    /// Write something down. If it is worth a log line: how many of its class were not, since the
    /// last that was.
    pub fn note(&self, note: Note) -> Option<u32> {
        let numbered = Numbered(self.noted.fetch_add(1, Ordering::Relaxed), note);
        let refused = note.outcome.reason().is_some_and(|reason| !reason.is_its_clients());
        if refused { &self.refused } else { &self.broken }.put(numbered);
        let told = self.pace.first(note.outcome.index(), self.second(note.at));
        if told.is_some() {
            self.told.put(numbered);
        }
        told
    }

    /// What is known under that name: a request's, or the number of a connection.
    pub fn find(&self, name: &str) -> Option<Found> {
        let mut found = self.all(usize::MAX, |note| note.is(name));
        let of_that_name = found.len();
        let newest = found.drain(..).next();
        newest.map(|note| Found { note, of_that_name })
    }

    /// The last refusals, newest first; without those whose clients broke off.
    pub fn last(&self, most: usize) -> Vec<Note> {
        self.refused.newest(most, |_| true).into_iter().map(|numbered| numbered.1).collect()
    }

    /// How far back it goes.
    pub fn reach(&self) -> Reach {
        let full = [&self.refused, &self.broken].into_iter().filter(|ring| ring.has_wrapped());
        let since = full.filter_map(|ring| ring.oldest()).map(|note| note.at).max();
        Reach {
            begun: self.begun.1,
            noted: self.noted.load(Ordering::Relaxed),
            reaches: since.map_or(Reaches::Everything, Reaches::Since),
        }
    }

    /// When that was, by the clock on the wall.
    pub fn time(&self, at: Instant) -> SystemTime {
        self.begun.1 + at.saturating_duration_since(self.begun.0)
    }

    /// How many of each class had no line since the last that had one, if nothing has come since that
    /// could have said so.
    pub fn unsaid(&self, now: Instant) -> Vec<(Outcome, u32)> {
        let second = self.second(now);
        let counted = Outcome::all().map(|class| (class, self.pace.unsaid(class.index(), second)));
        counted.filter(|(_, count)| *count > 0).collect()
    }

    fn all(&self, most: usize, wanted: impl Fn(&Note) -> bool) -> Vec<Note> {
        let rings = [&self.refused, &self.broken, &self.told];
        let mut found: Vec<_> =
            rings.into_iter().flat_map(|ring| ring.newest(most, &wanted)).collect();
        found.sort_unstable_by_key(|numbered| std::cmp::Reverse(numbered.0));
        found.dedup_by_key(|numbered| numbered.0);
        found.into_iter().map(|numbered| numbered.1).collect()
    }

    /// Seconds since it began, never 0.
    fn second(&self, at: Instant) -> u32 {
        let since = at.saturating_duration_since(self.begun.0);
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX - 1) + 1
    }
}

impl Ring {
    fn of(most: usize) -> Self {
        let chunks = (0..most / CHUNK).map(|_| OnceLock::new()).collect();
        Self { chunks, next: AtomicU64::new(0) }
    }

    fn places(&self) -> u64 {
        (self.chunks.len() * CHUNK) as u64
    }

    fn place(&self, turn: u64) -> (&OnceLock<Box<Chunk>>, usize) {
        let at = (turn % self.places()) as usize;
        (&self.chunks[at / CHUNK], at % CHUNK)
    }

    fn put(&self, numbered: Numbered) {
        let (chunk, at) = self.place(self.next.fetch_add(1, Ordering::Relaxed));
        let chunk = chunk.get_or_init(|| Box::new([const { Mutex::new(None) }; CHUNK]));
        *chunk[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(numbered);
    }

    fn get(&self, turn: u64, wanted: impl Fn(&Note) -> bool) -> Option<Numbered> {
        let (chunk, at) = self.place(turn);
        let place = chunk.get()?[at].lock().unwrap_or_else(PoisonError::into_inner);
        place.as_ref().filter(|numbered| wanted(&numbered.1)).copied()
    }

    /// Those that are wanted, newest first.
    fn newest(&self, most: usize, wanted: impl Fn(&Note) -> bool) -> Vec<Numbered> {
        let next = self.next.load(Ordering::Relaxed);
        let turns = (next.saturating_sub(self.places())..next).rev();
        turns.filter_map(|turn| self.get(turn, &wanted)).take(most).collect()
    }

    /// Whether something has been pushed out.
    fn has_wrapped(&self) -> bool {
        self.next.load(Ordering::Relaxed) > self.places()
    }

    fn oldest(&self) -> Option<Note> {
        let next = self.next.load(Ordering::Relaxed);
        let first = next.saturating_sub(self.places());
        (first..next).find_map(|turn| self.get(turn, |_| true)).map(|numbered| numbered.1)
    }
}

impl Pace {
    /// Whether this is the first of its class in this second, and then how many had been none.
    fn first(&self, class: usize, second: u32) -> Option<u32> {
        let word = &self.0[class];
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let (since, more) = ((seen >> 32) as u32, seen as u32);
            // A worker that looked at its clock a moment ago does not open the second again.
            let next = match since < second {
                true => u64::from(second) << 32,
                false => seen & !u64::from(u32::MAX) | u64::from(more.saturating_add(1)),
            };
            match word.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return (since < second).then_some(more),
                Err(newer) => seen = newer,
            }
        }
    }

    /// How many have had no line, if their second is over; they are told of now.
    fn unsaid(&self, class: usize, second: u32) -> u32 {
        let word = &self.0[class];
        let seen = word.load(Ordering::Relaxed);
        let over = ((seen >> 32) as u32) < second;
        let kept = seen & !u64::from(u32::MAX);
        let told =
            over && word.compare_exchange(seen, kept, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if told { seen as u32 } else { 0 }
    }
}

impl Numbers {
    /// A time as it is written down.
    pub fn seconds(duration: Duration) -> f32 {
        duration.as_secs_f32()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Reason;

    fn note(journal: &Journal, id: &[u8], connection: u64, outcome: Outcome, after: u64) -> Note {
        let request = Request {
            id: Text::of(id),
            method: Text::of(b"GET"),
            path: Text::of(b"/"),
            deadline: None,
            status: 503,
            grpc_status: None,
            retry_after: None,
            mean: None,
        };
        Note {
            at: journal.begun.0 + Duration::from_millis(after),
            outcome,
            astray: None,
            port: SocketAddr::from(([127, 0, 0, 1], 8000)),
            client: None,
            connection,
            request: (!id.is_empty()).then_some(request),
            lasted: 0.0,
            waited: 0.0,
            numbers: Numbers::default(),
        }
    }

    const FULL: Outcome = Outcome::Refused(Reason::QueueFull);

    #[test]
    fn the_most_recent_of_a_name_is_found_and_the_others_are_counted() {
        let journal = Journal::default();
        for after in 0..5 {
            journal.note(note(&journal, b"mine", 1, FULL, after));
            journal.note(note(&journal, b"other", 2, Outcome::AppReset, after));
        }
        journal.note(note(&journal, b"", 17, FULL, 9));
        let found = journal.find("mine").expect("it is there");
        assert_eq!(found.of_that_name, 5);
        assert_eq!(found.note.at, journal.begun.0 + Duration::from_millis(4));
        assert_eq!(journal.find("other").map(|found| found.of_that_name), Some(5));
        assert_eq!(journal.find("17").map(|found| found.of_that_name), Some(1));
        assert!(journal.find("min").is_none() && journal.find("mine2").is_none());
        assert_eq!(journal.last(100).len(), 6, "refusals only");
    }

    #[test]
    fn names_are_found_as_they_were_sent_and_as_they_are_shown() {
        let journal = Journal::default();
        let long = "x".repeat(3 * ID_LENGTH);
        for id in [&b"\xff\x1b[31m"[..], long.as_bytes(), "ü".as_bytes()] {
            journal.note(note(&journal, id, 1, FULL, 0));
        }
        let cut = format!("{}…", "x".repeat(ID_LENGTH));
        for name in [r"\xff\x1b[31m", &long, &cut, "ü"] {
            assert!(journal.find(name).is_some(), "{name}");
        }
        assert!(journal.find(&"x".repeat(ID_LENGTH - 1)).is_none());
    }

    #[test]
    fn it_is_bounded_and_clients_that_leave_push_out_no_refusals() {
        let journal = Journal::default();
        let after = |millis| Reaches::Since(journal.begun.0 + Duration::from_millis(millis));
        assert_eq!(journal.reach().reaches, Reaches::Everything);
        journal.note(note(&journal, b"refused", 1, FULL, 0));
        assert_eq!(journal.reach().reaches, Reaches::Everything);
        for _ in 0..3 * BROKEN {
            journal.note(note(&journal, b"left", 2, Outcome::Refused(Reason::ClientGone), 5000));
            journal.note(note(&journal, b"reset", 2, Outcome::ClientReset, 5000));
        }
        assert!(journal.find("refused").is_some());
        let reach = journal.reach();
        assert_eq!(reach.noted, 6 * BROKEN as u64 + 1);
        assert_eq!(reach.reaches, after(5000), "of those who broke off some are gone");

        for turn in 0..2 * REFUSED as u64 {
            journal.note(note(&journal, b"storm", 3, FULL, 10_000 + turn));
        }
        assert_eq!(journal.last(usize::MAX).len(), REFUSED);
        assert_eq!(journal.reach().reaches, after(10_000 + REFUSED as u64));
        assert!(journal.find("refused").is_some(), "the first of its class in its second");
        assert!(size_of::<Numbered>() <= 336, "{} bytes a note", size_of::<Numbered>());
    }

    #[test]
    fn one_line_a_second_and_class_and_the_rest_is_counted() {
        let journal = Journal::default();
        let at = |outcome, after| journal.note(note(&journal, b"x", 1, outcome, after));
        assert_eq!(at(FULL, 0), Some(0));
        assert_eq!(at(Outcome::AppReset, 0), Some(0), "another class");
        assert_eq!([at(FULL, 1), at(FULL, 999)], [None, None]);
        assert_eq!(journal.unsaid(journal.begun.0), [], "its second is not over");
        assert_eq!(at(FULL, 1000), Some(2));
        assert_eq!([at(FULL, 1500), at(FULL, 400)], [None, None], "a clock read a moment ago");
        let later = journal.begun.0 + Duration::from_secs(2);
        assert_eq!(journal.unsaid(later), [(FULL, 2)]);
        assert_eq!(journal.unsaid(later), [], "told once");
        assert_eq!(at(FULL, 2000), Some(0));
    }

    #[test]
    fn many_write_while_one_reads() {
        let journal = Journal::default();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let journal = &journal;
                scope.spawn(move || {
                    for after in 0..REFUSED as u64 {
                        let id = format!("{thread}-{after}");
                        journal.note(note(journal, id.as_bytes(), thread, FULL, after));
                    }
                });
            }
            for _ in 0..20 {
                for note in journal.last(100) {
                    let id = note.request.expect("all have one").id;
                    let whole = format!("{}-", note.connection);
                    assert!(id.bytes().starts_with(whole.as_bytes()), "{id:?}");
                }
            }
        });
        assert_eq!(journal.reach().noted, 4 * REFUSED as u64);
        assert_eq!(journal.last(usize::MAX).len(), REFUSED);
    }
}
