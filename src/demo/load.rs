//! The load of the demo: clients that come at a steady rate whatever becomes of those before them,
//! send a request, and leave with the answer or without it after [`PATIENCE`].

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// How long a client waits before it gives up and leaves.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// The clients of one act.
pub struct Load {
    to: SocketAddr,
    seen: Rc<RefCell<Seen>>,
    /// Nobody listens any more: somebody was told so.
    closed: Rc<Cell<bool>>,
}

/// What the clients saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Clients that came.
    pub offered: u64,
    /// How long it took until they knew, of clients that read a 503.
    pub refused: Vec<Duration>,
    /// Clients that could not get in any more, because nobody listens.
    pub late: u64,
    /// Clients that ran out of patience.
    pub gave_up: u64,
    /// Clients that were given something else than their answer.
    pub broken: u64,
    /// Clients that could not set out: this machine is out of something.
    pub unable: u64,
    /// From setting out to the whole answer, of each client that was served.
    pub served: Vec<Duration>,
    /// When the last of them was.
    pub last_served: Option<Instant>,
}

/// How it went for one client.
enum Visit {
    Served,
    Refused,
    Late,
    Broken,
    Unable,
}

impl Load {
    /// Clients of the server at `to`; none has set out yet.
    pub fn new(to: SocketAddr) -> Self {
        Self { to, seen: Rc::default(), closed: Rc::default() }
    }

    /// Send `rate` clients a second until `end`, then wait for those who are still there. The answer
    /// is when they came: from, to.
    pub async fn run(&self, rate: f64, end: impl Future<Output = ()>) -> [Instant; 2] {
        let clients = TaskTracker::new();
        let begun = Instant::now();
        tokio::select! {
            () = end => {}
            () = self.send(rate, &clients) => {}
        }
        let ended = Instant::now();
        clients.close();
        clients.wait().await;
        [begun, ended]
    }

    /// One after the other, each at its time; those whose time has passed set out at once.
    async fn send(&self, rate: f64, clients: &TaskTracker) {
        let begun = tokio::time::Instant::now();
        for number in 0_u64.. {
            tokio::time::sleep_until(begun + Duration::from_secs_f64(number as f64 / rate)).await;
            let client = client(self.to, number, self.seen.clone(), self.closed.clone());
            spawn_local(clients.track_future(client));
        }
    }

    /// What has been seen so far.
    pub fn look<T>(&self, at: impl FnOnce(&Seen) -> T) -> T {
        at(&self.seen.borrow())
    }

    /// What has been seen.
    pub fn into_seen(self) -> Seen {
        self.seen.take()
    }
}

/// The time within which a share of them were; `None` if there are none.
pub fn quantile(times: &[Duration], share: f64) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied()
}

/// One client, from setting out to the entry in the book.
async fn client(to: SocketAddr, number: u64, seen: Rc<RefCell<Seen>>, closed: Rc<Cell<bool>>) {
    seen.borrow_mut().offered += 1;
    let begun = Instant::now();
    let inside = Cell::new(false);
    let visit = timeout(PATIENCE, visit(to, number, &inside)).await;
    let mut seen = seen.borrow_mut();
    match visit {
        Ok(Visit::Served) => {
            seen.served.push(begun.elapsed());
            seen.last_served = Some(Instant::now());
        }
        Ok(Visit::Refused) => seen.refused.push(begun.elapsed()),
        Ok(Visit::Late) => {
            closed.set(true);
            seen.late += 1;
        }
        Ok(Visit::Broken) => seen.broken += 1,
        Ok(Visit::Unable) => seen.unable += 1,
        // A SYN that meets a closing door is dropped, to be asked again a second later, which is
        // longer than these clients have.
        Err(_) if closed.get() && !inside.get() => seen.late += 1,
        Err(_) => seen.gave_up += 1,
    }
}

async fn visit(to: SocketAddr, number: u64, inside: &Cell<bool>) -> Visit {
    let mut stream = match TcpStream::connect(to).await {
        Ok(stream) => stream,
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Visit::Late,
        Err(_) => return Visit::Unable,
    };
    inside.set(true);
    let request = format!("GET /{number} HTTP/1.1\r\nhost: demo\r\nconnection: close\r\n\r\n");
    // What becomes of it shows below.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer).await {
        Ok(_) if answer.starts_with("HTTP/1.1 503 ") => Visit::Refused,
        Ok(_)
            if answer.starts_with("HTTP/1.1 200 ")
                && answer.ends_with(&format!("\r\n\r\nok /{number}\n")) =>
        {
            Visit::Served
        }
        _ => Visit::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_seen() {
        let times = [3, 1, 2, 4].map(Duration::from_millis);
        assert_eq!(quantile(&times, 0.5), Some(times[2]));
        assert_eq!(quantile(&times, 0.99), Some(times[3]));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
