//! An application that overload hurts: SLOTS workers, each busy MILLIS with a request, and a queue without end before them.
//!
//! It does not look whether anybody still waits for an answer, as a server with a thread per request does not. A request is
//! in progress from the last byte of its head until its answer is about to be written, so that whoever sends the next one
//! after reading this one's answer never finds it counted still.
//!
//! `/` works; `/hold` is answered when its client leaves, that is never; `/books` says what was counted. Requests have no body.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;

const BACKLOG: u32 = 4096;
const BOOKKEEPER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 40, 1)); // bench/load.py asks from here
const OUT_OF_FILES: Duration = Duration::from_millis(10); // a connection lasts as long as its work: without a gateway they run out
const MOST: usize = 64 * 1024; // bytes of a request: far more than any header a proxy adds

/// A request in progress.
struct Job {
    arrived: Instant,
    done: oneshot::Sender<()>,
}

#[derive(Default)]
struct Books {
    in_progress: AtomicU64,
    most_in_progress: AtomicU64,
    connections: AtomicU64,
    most_connections: AtomicU64,
    done: AtomicU64,
    held: AtomicU64,
}

#[derive(Default)]
struct App {
    jobs: Mutex<VecDeque<Job>>,
    more: Condvar,
    books: Books,
}

pub fn run(slots: u32, busy: Duration, addr: SocketAddr) {
    let app = Arc::new(App::default());
    for _ in 0..slots {
        let app = app.clone();
        thread::spawn(move || work(&app, busy));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a process may have an epoll instance");
    runtime.block_on(async move {
        let listener = listen(addr).unwrap_or_else(|e| panic!("cannot listen on {addr}: {e}"));
        loop {
            match listener.accept().await {
                Ok((stream, from)) => drop(tokio::spawn(connection(app.clone(), stream, from))),
                Err(_) => tokio::time::sleep(OUT_OF_FILES).await,
            }
        }
    });
}

fn listen(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// A worker takes the next request when it was due to be free, not when the kernel woke it: that is never above nor, under
/// a queue, below one request in `busy`.
fn work(app: &App, busy: Duration) {
    let mut free = Instant::now();
    loop {
        let mut jobs = app.jobs.lock().expect("no worker panics");
        let job = loop {
            match jobs.pop_front() {
                Some(job) => break job,
                None => jobs = app.more.wait(jobs).expect("no worker panics"),
            }
        };
        drop(jobs);
        free = free.max(job.arrived) + busy;
        thread::sleep(free.saturating_duration_since(Instant::now()));
        app.books.in_progress.fetch_sub(1, SeqCst);
        app.books.done.fetch_add(1, SeqCst);
        let _ = job.done.send(()); // the connection may be gone; the work was done all the same
    }
}

/// One connection, in the books unless it only reads them.
async fn connection(app: Arc<App>, stream: TcpStream, from: SocketAddr) {
    if from.ip() == BOOKKEEPER {
        return converse(&app, stream).await;
    }
    rise(&app.books.connections, &app.books.most_connections);
    converse(&app, stream).await;
    app.books.connections.fetch_sub(1, SeqCst);
}

/// Request after request until the other side ends the connection.
async fn converse(app: &App, mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut read = Vec::new();
    while let Some(head) = next(&mut stream, &mut read).await {
        let body = match head.split(' ').nth(1) {
            Some("/books") => app.books.json(),
            Some("/hold") => {
                app.books.held.fetch_add(1, SeqCst);
                while matches!(stream.read_buf(&mut read).await, Ok(n) if n > 0) && read.len() < MOST {}
                app.books.held.fetch_sub(1, SeqCst);
                break;
            }
            _ => {
                rise(&app.books.in_progress, &app.books.most_in_progress);
                let (done, answer) = oneshot::channel();
                app.jobs.lock().expect("no worker panics").push_back(Job { arrived: Instant::now(), done });
                app.more.notify_one();
                let _ = answer.await;
                "ok\n".into()
            }
        };
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            break;
        }
    }
}

/// The next head, taken off `read`; None at the end of the connection.
async fn next(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = read.drain(..end + 4).collect::<Vec<u8>>();
            return Some(String::from_utf8_lossy(&head).into_owned());
        }
        if read.len() > MOST || !matches!(stream.read_buf(read).await, Ok(n) if n > 0) {
            return None;
        }
    }
}

fn rise(now: &AtomicU64, most: &AtomicU64) {
    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
}

impl Books {
    fn json(&self) -> String {
        format!(
            r#"{{"in_progress":{},"most_in_progress":{},"most_connections":{},"done":{},"held":{}}}"#,
            self.in_progress.load(SeqCst),
            self.most_in_progress.load(SeqCst),
            self.most_connections.load(SeqCst),
            self.done.load(SeqCst),
            self.held.load(SeqCst),
        )
    }
}
