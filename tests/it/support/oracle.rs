//! The application, which knows the truth: how many connections it has, in what order they came, and
//! what arrived on them.
//!
//! It lives in one thread. A connection is counted right after it is accepted and no longer right before
//! it is closed, so the count is exact and never too high, except for connections that were reset and
//! not noticed yet. These the kernel knows: right after each accept it is asked which of the sockets
//! held are dead (`POLLHUP`: both directions ended). Whatever is alive then was alive together, because
//! the dead do not come back and nobody else accepts. That is the count of [`Arrival::alive`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};

use super::pattern::{self, Checker};

/// What the application does with each connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Script {
    /// Reads a request (id, milliseconds), works that long, answers the id, closes.
    Work,
    /// Reads a request, waits for [`Oracle::release`], answers the id, closes.
    Held,
    /// Returns every byte; closes after the client's FIN.
    Echo,
    /// Accepts and does nothing, for ever.
    Stall,
    /// Sends a banner at once, then echoes.
    SpeakFirst(&'static [u8]),
    /// Reads a byte, sends so many bytes of the pattern, then RST.
    ResetAfter(u64),
    /// Reads the pattern up to FIN, then sends so many bytes of it, then closes.
    AnswerAfterEnd(u64),
    /// Sends so many bytes of the pattern and FIN, then reads the pattern up to the client's FIN.
    EndFirst(u64),
}

/// One connection, as the application saw it.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// When it was accepted.
    pub(crate) at: Instant,
    /// How many were alive then, this one included, by the kernel's word.
    pub(crate) alive: usize,
    /// The client's id, once its request was read.
    pub(crate) id: Option<u64>,
    /// Bytes of the pattern received, and whether one was wrong.
    pub(crate) received: u64,
    pub(crate) damaged: bool,
    /// How it went, once it is over.
    pub(crate) end: Option<Result<(), io::ErrorKind>>,
}

/// The application's handle, for the test's thread. Dropping it closes every socket.
pub(crate) struct Oracle {
    pub(crate) address: SocketAddr,
    books: Arc<Books>,
    thread: Option<JoinHandle<()>>,
}

struct Books {
    arrivals: Mutex<Vec<Arrival>>,
    count: AtomicUsize,
    peak: AtomicUsize,
    releases: Semaphore,
    stop: Notify,
}

impl Oracle {
    pub(crate) fn start(script: Script) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), script)
    }

    /// At a given address, to come back after a restart.
    pub(crate) fn start_at(address: SocketAddr, script: Script) -> Self {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        socket.bind(&address.into()).expect("the address is free");
        socket.listen(4096).expect("listen");
        let listener: std::net::TcpListener = socket.into();
        let address = listener.local_addr().expect("bound");
        let books = Arc::new(Books {
            arrivals: Mutex::default(),
            count: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            releases: Semaphore::new(0),
            stop: Notify::new(),
        });
        let thread = std::thread::spawn({
            let books = Arc::clone(&books);
            move || serve(listener, script, &books)
        });
        Self { address, books, thread: Some(thread) }
    }

    /// Connections open now, by its own count.
    pub(crate) fn count(&self) -> usize {
        self.books.count.load(Ordering::SeqCst)
    }

    /// The most it ever had at once by its own count. Exact where nothing is reset.
    pub(crate) fn peak(&self) -> usize {
        self.books.peak.load(Ordering::SeqCst)
    }

    /// The most that were ever alive at once by the kernel's word.
    pub(crate) fn peak_alive(&self) -> usize {
        self.arrivals().iter().map(|arrival| arrival.alive).max().unwrap_or(0)
    }

    /// Every connection so far, in the order of their arrival.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.books.arrivals().clone()
    }

    /// How many arrived so far.
    pub(crate) fn arrived(&self) -> usize {
        self.books.arrivals().len()
    }

    /// The ids in the order of arrival, of those whose request was read.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.books.arrivals().iter().filter_map(|arrival| arrival.id).collect()
    }

    /// Lets so many held requests be answered, in the order in which they were read.
    pub(crate) fn release(&self, count: usize) {
        self.books.releases.add_permits(count);
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.books.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Books {
    fn arrivals(&self) -> MutexGuard<'_, Vec<Arrival>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sockets held, by the number of their arrival.
type Held = Rc<RefCell<BTreeMap<usize, Rc<TcpStream>>>>;

fn serve(listener: std::net::TcpListener, script: Script, books: &Arc<Books>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let listener = TcpListener::from_std(listener).expect("a listener");
        let held = Held::default();
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => Rc::new(stream),
                    Err(error) => panic!("the application could not accept: {error}"),
                },
                () = books.stop.notified() => return,
            };
            let number = books.enter(&held, &stream);
            let conversation =
                Conversation { number, stream, books: Arc::clone(books), held: Rc::clone(&held) };
            tokio::task::spawn_local(conversation.hold(script));
        }
    });
}

impl Books {
    /// Counts a connection just accepted.
    fn enter(&self, held: &Held, stream: &Rc<TcpStream>) -> usize {
        let mut arrivals = self.arrivals();
        let number = arrivals.len();
        let mut held = held.borrow_mut();
        held.insert(number, Rc::clone(stream));
        self.count.store(held.len(), Ordering::SeqCst);
        self.peak.fetch_max(held.len(), Ordering::SeqCst);
        arrivals.push(Arrival {
            at: Instant::now(),
            alive: alive(&held),
            id: None,
            received: 0,
            damaged: false,
            end: None,
        });
        number
    }
}

/// Asks the kernel which of the sockets are not dead. Not asked of more than a few hundred: no test needs
/// it there, and it would cost more than the test.
fn alive(held: &BTreeMap<usize, Rc<TcpStream>>) -> usize {
    if held.len() > 800 {
        return held.len();
    }
    let streams = held.values().map(|stream| PollFd::new(&**stream, PollFlags::empty()));
    let mut fds: Vec<_> = streams.collect();
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&none)).expect("poll of own sockets");
    let dead = fds.iter().filter(|fd| fd.revents().contains(PollFlags::HUP));
    fds.len() - dead.count()
}

/// One connection and what the application does with it.
struct Conversation {
    number: usize,
    stream: Rc<TcpStream>,
    books: Arc<Books>,
    held: Held,
}

impl Conversation {
    async fn hold(self, script: Script) {
        let end = self.play(script).await;
        self.note(|arrival| arrival.end = Some(end.map_err(|error| error.kind())));
        let mut held = self.held.borrow_mut();
        held.remove(&self.number); // counted out first, closed after
        self.books.count.store(held.len(), Ordering::SeqCst);
    }

    async fn play(&self, script: Script) -> io::Result<()> {
        match script {
            Script::Work => {
                let (id, work) = self.request().await?;
                tokio::time::sleep(work).await;
                self.write_all(&id.to_le_bytes()).await
            }
            Script::Held => {
                let (id, _) = self.request().await?;
                let release = self.books.releases.acquire().await;
                release.expect("never closed").forget();
                self.write_all(&id.to_le_bytes()).await
            }
            Script::Echo => self.echo().await,
            Script::Stall => std::future::pending().await,
            Script::SpeakFirst(banner) => {
                self.write_all(banner).await?;
                self.echo().await
            }
            Script::ResetAfter(length) => {
                self.read(&mut [0]).await?;
                self.send_pattern(length).await?;
                SockRef::from(&*self.stream).set_linger(Some(Duration::ZERO))
            }
            Script::AnswerAfterEnd(length) => {
                self.read_pattern().await?;
                self.send_pattern(length).await
            }
            Script::EndFirst(length) => {
                self.send_pattern(length).await?;
                SockRef::from(&*self.stream).shutdown(std::net::Shutdown::Write)?;
                self.read_pattern().await
            }
        }
    }

    /// Reads a request of `ledger::Client::ask` and notes whose it is.
    async fn request(&self) -> io::Result<(u64, Duration)> {
        let mut request = [0; 16];
        let mut filled = 0;
        while filled < request.len() {
            match self.read(&mut request[filled..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        let number =
            |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().expect("8 bytes"));
        self.note(|arrival| arrival.id = Some(number(0)));
        Ok((number(0), Duration::from_millis(number(8))))
    }

    async fn echo(&self) -> io::Result<()> {
        let mut buffer = vec![0; 65_536];
        loop {
            match self.read(&mut buffer).await? {
                0 => return Ok(()),
                count => self.write_all(&buffer[..count]).await?,
            }
        }
    }

    async fn send_pattern(&self, length: u64) -> io::Result<()> {
        let mut sent = 0;
        while sent < length {
            let part = pattern::slice(sent, length - sent);
            self.write_all(part).await?;
            sent += part.len() as u64;
        }
        Ok(())
    }

    async fn read_pattern(&self) -> io::Result<()> {
        let mut checker = Checker::default();
        let mut buffer = vec![0; 65_536];
        loop {
            let count = self.read(&mut buffer).await?;
            checker.take(&buffer[..count]);
            self.note(|arrival| {
                (arrival.received, arrival.damaged) = (checker.received, checker.damaged);
            });
            if count == 0 {
                return Ok(());
            }
        }
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = || self.stream.try_read(buffer);
        ready(&self.stream, Interest::READABLE, read).await
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = || self.stream.try_write(bytes);
            let written = ready(&self.stream, Interest::WRITABLE, write).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    fn note(&self, change: impl FnOnce(&mut Arrival)) {
        change(&mut self.books.arrivals()[self.number]);
    }
}

async fn ready(
    stream: &TcpStream,
    interest: Interest,
    mut attempt: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        stream.ready(interest).await?;
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}
