//! The application that speaks HTTP and keeps books of every request: what came, on which connection, how
//! many were in progress at once, how it ended. What it does is in the request's path (`scripts.rs`).
//!
//! It lives in one thread. A request is counted when its head has been read, and no longer right before
//! the last byte of its answer is written; so for requests that are answered the count is exact and never
//! too high. It does not look whether somebody still waits for an answer, like most applications.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};

use crate::support::SOON;
use crate::support::Stopwatch;

use super::wire1;
use super::wire2;

/// One request, as the application saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    /// `X-Id`, which the clients of the rig send.
    pub(crate) id: Option<u64>,
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// `1.0`, `1.1` or `2`.
    pub(crate) version: &'static str,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// The number of the connection it came on.
    pub(crate) connection: usize,
    /// Bytes of its body that were read, whether one was not the pattern's, and whether the end came.
    pub(crate) body: u64,
    pub(crate) damaged: bool,
    pub(crate) whole: bool,
    pub(crate) trailers: Vec<(String, String)>,
    /// How it went, once it is over.
    pub(crate) end: Option<Result<(), std::io::ErrorKind>>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// The application's handle, for the test's thread. Dropping it closes every socket.
pub(crate) struct HttpOracle {
    pub(crate) address: SocketAddr,
    books: Arc<Books>,
    thread: Option<JoinHandle<()>>,
}

pub(crate) struct Books {
    seen: Mutex<Vec<Seen>>,
    /// Where each id is written when it comes, a line each: for whoever is in another process.
    ids: Option<File>,
    connections: AtomicUsize,
    in_progress: AtomicUsize,
    peak: AtomicUsize,
    pub(crate) releases: Semaphore,
    pub(crate) workers: Semaphore,
    stop: Notify,
}

impl HttpOracle {
    pub(crate) fn start() -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// At an address of the test's choice.
    pub(crate) fn start_at(address: SocketAddr) -> Self {
        Self::serving(address, None)
    }

    /// The same, which writes down every id that comes.
    pub(crate) fn noting(address: SocketAddr, ids: File) -> Self {
        Self::serving(address, Some(ids))
    }

    fn serving(address: SocketAddr, ids: Option<File>) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("the address is free");
        listener.set_nonblocking(true).expect("O_NONBLOCK");
        let address = listener.local_addr().expect("bound");
        let books = Arc::new(Books {
            seen: Mutex::default(),
            ids,
            connections: AtomicUsize::new(0),
            in_progress: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            releases: Semaphore::new(0),
            workers: Semaphore::new(8),
            stop: Notify::new(),
        });
        let thread = std::thread::spawn({
            let books = Arc::clone(&books);
            move || serve(listener, &books)
        });
        Self { address, books, thread: Some(thread) }
    }

    /// Requests in progress now.
    pub(crate) fn in_progress(&self) -> usize {
        self.books.in_progress.load(Ordering::SeqCst)
    }

    /// The most there ever were.
    pub(crate) fn peak(&self) -> usize {
        self.books.peak.load(Ordering::SeqCst)
    }

    /// Every request so far, in the order of arrival.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.books.seen().clone()
    }

    /// How many came so far.
    pub(crate) fn count(&self) -> usize {
        self.books.seen().len()
    }

    /// How many connections came so far.
    pub(crate) fn connections(&self) -> usize {
        self.books.connections.load(Ordering::SeqCst)
    }

    /// The ids in the order of arrival.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.books.seen().iter().filter_map(|seen| seen.id).collect()
    }

    /// Waits until every request has ended and its answer is written; a failure names those that have not.
    #[track_caller]
    pub(crate) fn all_over(&self) {
        let start = Stopwatch::start();
        loop {
            let seen = self.seen();
            let open: Vec<_> = seen.iter().filter(|seen| seen.end.is_none()).collect();
            if open.is_empty() {
                return;
            }
            assert!(!start.is_past(SOON), "not over after {SOON:?}: {open:?}");
            std::thread::sleep(Duration::from_millis(5)); // between two looks
        }
    }

    /// Lets so many held requests go on, in the order in which they came.
    pub(crate) fn release(&self, count: usize) {
        self.books.releases.add_permits(count);
    }
}

impl Drop for HttpOracle {
    fn drop(&mut self) {
        self.books.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: std::net::TcpListener, books: &Arc<Books>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let listener = TcpListener::from_std(listener).expect("a listener");
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted.expect("the application can accept").0,
                () = books.stop.notified() => return,
            };
            let number = books.connections.fetch_add(1, Ordering::SeqCst);
            tokio::task::spawn_local(converse(stream, number, Arc::clone(books)));
        }
    });
}

/// The preface decides between HTTP/1 and HTTP/2.
async fn converse(stream: TcpStream, number: usize, books: Arc<Books>) {
    let _ = stream.set_nodelay(true);
    let mut start = [0; 4];
    loop {
        match stream.peek(&mut start).await {
            Ok(4) => break,
            Ok(0) | Err(_) => return,
            Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await, // a split head
        }
    }
    match &start {
        b"PRI " => wire2::converse(stream, number, books).await,
        _ => wire1::converse(stream, number, books).await,
    }
}

impl Books {
    fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request whose head was just read.
    pub(crate) fn enter(self: &Arc<Self>, connection: usize, head: Head) -> Entry {
        let at_once = self.in_progress.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(at_once, Ordering::SeqCst);
        let mut seen = self.seen();
        let id = head.headers.iter().find(|(name, _)| name == "x-id");
        let id = id.and_then(|(_, id)| id.parse::<u64>().ok());
        if let (Some(mut ids), Some(id)) = (self.ids.as_ref(), id) {
            ids.write_all(format!("{id}\n").as_bytes()).expect("there is room");
        }
        seen.push(Seen {
            at: Instant::now(),
            id,
            method: head.method,
            path: head.path,
            version: head.version,
            headers: head.headers,
            connection,
            body: 0,
            damaged: false,
            whole: false,
            trailers: Vec::new(),
            end: None,
        });
        Entry { number: seen.len() - 1, books: Arc::clone(self), counted: true }
    }
}

/// What a request begins with.
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) version: &'static str,
    pub(crate) headers: Vec<(String, String)>,
}

/// A request's line in the books; in progress until [`Entry::leave`], at the latest until dropped.
pub(crate) struct Entry {
    number: usize,
    pub(crate) books: Arc<Books>,
    counted: bool,
}

impl Entry {
    pub(crate) fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.books.seen()[self.number]);
    }

    /// A copy of what is known of it.
    pub(crate) fn seen(&self) -> Seen {
        self.books.seen()[self.number].clone()
    }

    /// To be called right before the last byte of the answer is written.
    pub(crate) fn leave(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.books.in_progress.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.leave();
    }
}
