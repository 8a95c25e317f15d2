//! A16, T41: far more than fits, for a while. An application of 8 workers that goes on working for clients
//! that have left is kept at what it can do, and those who are served are served quickly.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::gateway::Gateway;
use crate::support::ledger::End;
use crate::support::{Engine, SOON, Stopwatch, engines, scale, slack, until};

use super::client::{self, next_id};
use super::http2;
use super::oracle::HttpOracle;
use super::{assert_settled, gate};

engines!(three_times_too_many, ten_times_too_many_who_give_up);

/// The workers of the application, the limit, and the length of the queue.
const WORKERS: usize = 8;

fn three_times_too_many(engine: Engine) {
    overload(engine, 3, Duration::from_secs(scale(3, 60) as u64));
}

fn ten_times_too_many_who_give_up(engine: Engine) {
    overload(engine, 10, Duration::from_secs(scale(3, 30) as u64));
}

#[derive(Default)]
struct Books {
    /// When they were answered, and after how long.
    served: Vec<(Instant, Duration)>,
    refused: usize,
    broken: usize,
    /// When which request's client gave up.
    left: HashMap<u64, Instant>,
}

fn overload(engine: Engine, times: u32, length: Duration) {
    // Short runs are also slower: ten times too many are then 400 a second, which a machine that is shared
    // carries as well, clients, debug build and all.
    let work = Duration::from_millis(scale(200, 20) as u64);
    let capacity = WORKERS as f64 / work.as_secs_f64();
    let app = HttpOracle::start();
    let gateway = gate(engine, app.address)
        .set("limit", WORKERS)
        .set("queue-length", WORKERS)
        .set("queue-timeout", "1s")
        .start();
    let books = Arc::new(Mutex::new(Books::default()));
    let load = Load { work, rate: capacity * f64::from(times), length };
    let Offered { lasted, held_up } = http2::block_on(offer(&gateway, &books, load));
    let books = std::mem::take(&mut *books.lock().expect("no panic"));
    let goodput = books.served.len() as f64 / (capacity * lasted.as_secs_f64());
    let mut took: Vec<_> = books.served.iter().map(|(_, took)| *took).collect();
    took.sort();
    let p50 = took.get(took.len() / 2).copied().unwrap_or(SOON);
    let tell = format!(
        "{times} times {capacity:.0}/s: goodput {goodput:.3}, served p50 {p50:?}, {} refused, {} gave up, {} broken",
        books.refused,
        books.left.len(),
        books.broken
    );
    eprintln!("{tell}");
    assert_eq!(books.broken, 0, "{tell}");
    // In short, on a shared machine, only that it does not collapse.
    assert!(goodput * 100.0 >= scale(60, 95) as f64, "{tell}");
    assert!(2 * p50 <= work * scale(10, 5) as u32, "{tell}");
    assert!(app.peak() <= WORKERS, "{} at once: {tell}", app.peak());
    // Whoever was let in reached the application, once, and nobody else did.
    let seen = app.seen();
    assert_eq!(seen.len() as u64, gateway.port().admitted, "{tell}");
    // A thread that does not get to run looks at its clock late.
    let at_once = slack(Duration::from_millis(50)) + held_up;
    let late = seen;
    let late = late.iter().filter(|seen| {
        let left = seen.id.and_then(|id| books.left.get(&id));
        left.is_some_and(|left| seen.at > *left + at_once)
    });
    assert_eq!(late.count(), 0, "forwarded after their clients had left: {tell}");
    assert_settled(&gateway, app.address.port());
}

#[derive(Clone, Copy)]
struct Load {
    /// What a request costs one worker.
    work: Duration,
    /// Requests a second.
    rate: f64,
    length: Duration,
}

struct Offered {
    /// From the first client to the end of the last.
    lasted: Duration,
    /// How long this machine has held it up at most.
    held_up: Duration,
}

/// An open loop: so many requests a second, each on a connection of its own.
async fn offer(gateway: &Gateway, books: &Arc<Mutex<Books>>, load: Load) -> Offered {
    let Load { work, rate, length } = load;
    // When a client gives up.
    let patience = Duration::from_millis(scale(2_000, 500) as u64);
    let to = gateway.address;
    let start = Stopwatch::start();
    let mut clients = tokio::task::JoinSet::new();
    let (mut offered, mut held_up) = (0.0, Duration::ZERO);
    while start.elapsed() < length {
        while offered < start.elapsed().as_secs_f64() * rate {
            offered += 1.0;
            let books = Arc::clone(books);
            clients.spawn_local(async move {
                let (id, asked) = (next_id(), Instant::now());
                let end = tokio::time::timeout(patience, ask(to, id, work)).await;
                let mut books = books.lock().expect("no panic");
                match end {
                    Ok(Ok(status)) if status.starts_with("HTTP/1.1 200") => {
                        books.served.push((Instant::now(), asked.elapsed()));
                    }
                    Ok(Ok(status)) if status.starts_with("HTTP/1.1 503") => books.refused += 1,
                    Ok(_) => books.broken += 1,
                    Err(_) => {
                        books.left.insert(id, Instant::now());
                    }
                }
            });
        }
        let beat = Instant::now();
        tokio::time::sleep(Duration::from_millis(1)).await; // the clock of the load
        held_up = held_up.max(beat.elapsed());
    }
    // Those who came last are still there.
    let back = tokio::task::spawn_blocking(move || back_to_normal(to, work));
    while clients.join_next().await.is_some() {}
    let lasted = start.own();
    back.await.expect("back to normal");
    Offered { lasted, held_up }
}

/// Within 2 x queue-timeout of the load's end.
fn back_to_normal(to: SocketAddr, work: Duration) {
    let path = format!("/worker?ms={}", work.as_millis());
    until("latency is back to normal", slack(Duration::from_secs(2)), || {
        let asked = Stopwatch::start();
        client::exchange(to, &path, SOON) == End::Answered
            && asked.own() < work + slack(Duration::from_millis(10))
    });
}

/// One request; the head of its answer.
async fn ask(to: SocketAddr, id: u64, work: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let path = format!("/worker?ms={}", work.as_millis());
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: app\r\nX-Id: {id}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
