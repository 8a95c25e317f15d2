//! The application of the demo: a server as many are. A thread accepts, [`WORKERS`] workers take
//! connections from a queue in the order they came, work on each for [`WORK`], and answer.
//!
//! It has two faults, and they are what makes it collapse: its queue is as long as it gets, and it
//! does not notice that a client has left before it has done the work. Once the queue is longer than
//! clients are patient, all its work is for clients that have left.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};

/// Requests it works on at once.
pub const WORKERS: usize = 8;

/// How long one request takes: long enough that a busy machine's scheduler does not matter beside it, and
/// that a surge of many times the capacity is less than a small machine carries. It waits, as for a database,
/// and leaves the processor to the others.
pub const WORK: Duration = Duration::from_millis(100);

/// Requests a second: 80.
pub const CAPACITY: f64 = WORKERS as f64 * 1000.0 / WORK.as_millis() as f64;

/// Connections it keeps open, as servers' settings for it usually are; the rest wait in the
/// kernel's backlog.
const MOST_OPEN: usize = 8192;

/// What the kernel keeps for it.
const BACKLOG: i32 = 4096;

/// How long it waits for a request's head. Clients send it at once.
const READ_PATIENCE: Duration = Duration::from_secs(1);

/// The running application. Dropping it ends it, and leaves its queue unserved.
pub struct Application {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the application says of one act.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Connections it has now.
    pub open: usize,
    /// The most connections it had at once.
    pub most: usize,
    /// Requests it has worked on to the end, whether or not anybody still wanted the answer.
    pub worked: u64,
}

struct Shared {
    state: Mutex<State>,
    /// Something in the state has changed.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<TcpStream>,
    seen: Seen,
    stop: bool,
}

impl Application {
    /// Listen on a port of loopback, and work.
    pub fn start() -> io::Result<Self> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        listener.listen(BACKLOG)?;
        let listener = TcpListener::from(listener);
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });

        let mut threads = Vec::new();
        let for_acceptor = shared.clone();
        threads.push(spawn("demo-accept", move || for_acceptor.accept(&listener))?);
        for _ in 0..WORKERS {
            let shared = shared.clone();
            threads.push(spawn("demo-work", move || shared.work())?);
        }
        Ok(Self { address, shared, threads })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Count anew.
    pub fn begin_act(&self) {
        let mut state = self.shared.lock();
        let open = state.seen.open;
        state.seen = Seen { open, most: open, worked: 0 };
    }

    /// What it has counted in this act.
    pub fn seen(&self) -> Seen {
        self.shared.lock().seen
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        // Out of accept(2).
        let _ = TcpStream::connect(self.address);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait until `ready`, or until the end: then `None`.
    fn wait(&self, ready: impl Fn(&State) -> bool) -> Option<MutexGuard<'_, State>> {
        let not_yet = |state: &mut State| !state.stop && !ready(state);
        let state = self.changed.wait_while(self.lock(), not_yet);
        Some(state.unwrap_or_else(PoisonError::into_inner)).filter(|state| !state.stop)
    }

    /// The accepting thread.
    fn accept(&self, listener: &TcpListener) {
        let most = most_open();
        while let Some(state) = self.wait(|state| state.seen.open < most) {
            drop(state);
            let Ok((stream, _)) = listener.accept() else {
                // Out of descriptors, or the client died in the backlog.
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            let mut state = self.lock();
            state.seen.open += 1;
            state.seen.most = state.seen.most.max(state.seen.open);
            state.waiting.push_back(stream);
            drop(state);
            self.changed.notify_all();
        }
    }

    /// A working thread.
    fn work(&self) {
        while let Some(mut state) = self.wait(|state| !state.waiting.is_empty()) {
            let stream = state.waiting.pop_front().expect("waited until there is one");
            drop(state);
            let answered = serve(&stream);
            let mut state = self.lock();
            // Before the end is sent: whoever sees it may come again at once.
            state.seen.open -= 1;
            state.seen.worked += u64::from(answered.is_ok());
            drop(state);
            // With an error the client has left, and nobody is there to be told.
            let _ = stream.shutdown(Shutdown::Both);
            self.changed.notify_all();
        }
    }
}

/// One request of HTTP: its head, the work, and its path again with an "ok" before it.
fn serve(mut stream: &TcpStream) -> io::Result<()> {
    let begun = Instant::now();
    stream.set_read_timeout(Some(READ_PATIENCE))?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    let path = first.split(' ').nth(1).ok_or(io::ErrorKind::InvalidData)?.to_owned();
    while !lines.next().ok_or(io::ErrorKind::UnexpectedEof)??.is_empty() {}
    thread::sleep(WORK.saturating_sub(begun.elapsed()));
    let body = format!("ok {path}\n");
    let length = body.len();
    // That the client has left shows in the answer at the earliest.
    let _ = stream.write_all(
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
            .as_bytes(),
    );
    Ok(())
}

/// The clients and the gateway live in this process too and need descriptors of their own.
fn most_open() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(descriptors / 4).unwrap_or(usize::MAX).min(MOST_OPEN)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(work)
}
