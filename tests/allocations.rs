//! P10: forwarding allocates nothing. A counting allocator around a relay that has warmed up.

mod counting;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate::io::epoll::Epoll;
use tidegate::io::flow::Patience;
use tidegate::io::uring::Uring;
use tidegate::io::{App, Engine, Flow, listen};
use tokio_util::sync::CancellationToken;

use counting::allocated;

/// Messages that may still allocate: queues and pools find their size.
const WARM_UP: usize = 200;
const MESSAGES: usize = 2_000;

/// What each of the two ways may still make once, however late its timing lets it: a queue of four
/// buffers and one of eight, a message for several buffers, a large buffer.
const ONCE: u64 = 2 * 4;

/// Ping and pong of `size` bytes through a relay; the peers run on their own thread.
async fn forwards_without_allocating<E: Engine>(engine: E, size: usize) {
    let socket = listen::open(SocketAddr::from(([127, 0, 0, 1], 0))).expect("listens");
    let front = socket.local_addr().expect("bound").as_socket().expect("IP");
    let listener = engine.listen(socket).expect("watched");
    let app = TcpListener::bind("127.0.0.1:0").expect("listens");
    let back = app.local_addr().expect("bound");
    let mut client = TcpStream::connect(front).expect("connects");
    let stop = CancellationToken::new();
    let (inner, _) = engine.accept(&listener, &stop).await.expect("accepts").expect("not stopped");
    let inner = engine.adopt(inner).expect("adopted");
    let outer = engine.dial(&App::Tcp(back), Duration::from_secs(5)).await.expect("dials");
    let (mut served, _) = app.accept().expect("accepts");

    let (said, heard) = std::sync::mpsc::channel();
    let peers = std::thread::spawn(move || {
        let mut message = vec![7; size];
        for n in 0..WARM_UP + MESSAGES {
            client.write_all(&message).expect("written");
            served.read_exact(&mut message).expect("read");
            served.write_all(&message).expect("written");
            client.read_exact(&mut message).expect("read");
            if n == WARM_UP || n + 1 == WARM_UP + MESSAGES {
                said.send(()).expect("heard");
            }
        }
    });
    let flow =
        Rc::new(Flow::new(Arc::default(), Arc::default(), Patience::ENDLESS, Instant::now()));
    let relaying = engine.relay(&inner, &outer, &flow);
    let watching = async {
        let mut counts = Vec::with_capacity(2);
        while counts.len() < 2 {
            if heard.try_recv().is_ok() {
                counts.push(allocated());
            }
            tokio::task::yield_now().await;
        }
        counts[1] - counts[0]
    };
    let (count, ()) = tokio::join!(watching, relaying);
    peers.join().expect("peers");
    assert!(count <= ONCE, "{count} allocations for {MESSAGES} messages of {size} bytes");
}

#[test]
fn epoll_forwards_without_allocating() {
    for size in [100, 40_000, 400_000] {
        Epoll::run(Arc::default(), |engine| forwards_without_allocating(engine, size))
            .expect("epoll runs");
    }
}

#[test]
fn uring_forwards_without_allocating() {
    for size in [100, 40_000, 400_000] {
        Uring::run(false, Arc::default(), |engine| forwards_without_allocating(engine, size))
            .expect("io_uring works here");
    }
}
