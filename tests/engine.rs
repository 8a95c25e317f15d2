//! Both engines against the promises their trait makes: one suite, run once per engine.
//! Nothing here sleeps to synchronise.

mod stopwatch;

use std::future::{Future, poll_fn};
use std::io::{IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket};
use tidegate::io::epoll::Epoll;
use tidegate::io::flow::Patience;
use tidegate::io::uring::Uring;
use tidegate::io::{App, Engine, Flow, Gauges, Side, Traffic, listen};
use tokio::io::ReadBuf;
use tokio_util::sync::CancellationToken;

use stopwatch::Stopwatch;

/// Long enough for a loaded machine, short enough to fail.
const SOON: Duration = Duration::from_secs(10);

/// Run `main` on each engine and see that nothing is left in use afterwards.
macro_rules! on_both_engines {
    ($($(#[$doc:meta])* fn $name:ident<$E:ident>($engine:ident: $ty:ty) $body:block)*) => {
        $(
            mod $name {
                use super::*;

                $(#[$doc])*
                async fn scenario<$E: Engine>($engine: $E) $body

                #[test]
                fn epoll() {
                    let _alone = alone();
                    let gauges = Arc::<Gauges>::default();
                    Epoll::run(gauges.clone(), |engine| soon(scenario(engine))).expect("epoll runs");
                    assert_idle(&gauges);
                }

                #[test]
                fn uring() {
                    let _alone = alone();
                    for sqpoll in [false, true] {
                        let gauges = Arc::<Gauges>::default();
                        Uring::run(sqpoll, gauges.clone(), |engine| soon(scenario(engine)))
                            .expect("io_uring works here");
                        assert_idle(&gauges);
                    }
                }
            }
        )*
    };
}

/// Descriptors are counted per process: one scenario at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // tokio opens two for signals with the first runtime of a process, and keeps them: whichever
    // test comes first must not take them for its own.
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    alone
}

async fn soon(scenario: impl Future<Output = ()>) {
    // At full size it is the number of rounds that takes long: a timer ends a millisecond late.
    let long = scale(1, 10) as u32;
    tokio::time::timeout(SOON * 6 * long, scenario).await.expect("the scenario ends in time");
}

/// How much of something: `small` now, `full` with SOAK=1.
fn scale(small: usize, full: usize) -> usize {
    if std::env::var_os("SOAK").is_some() { full } else { small }
}

fn assert_idle(gauges: &Gauges) {
    assert_eq!(gauges.buffers.load(Ordering::Relaxed), 0, "buffers still hold bytes");
    assert_eq!(gauges.ring_ops.load(Ordering::Relaxed), 0, "operations are still in the kernel");
}

/// A relayed pair: what the client holds, what the application holds, and the engine's two ends.
async fn pair<E: Engine>(engine: &E) -> (TcpStream, TcpStream, E::Stream, E::Stream) {
    let socket = listen::open(SocketAddr::from(([127, 0, 0, 1], 0))).expect("listens");
    let front = socket.local_addr().expect("bound").as_socket().expect("IP");
    let listener = engine.listen(socket).expect("watched");
    let app = TcpListener::bind("127.0.0.1:0").expect("listens");
    let back = app.local_addr().expect("bound");
    let client = TcpStream::connect(front).expect("connects");
    let stop = CancellationToken::new();
    let (inner, _) = engine.accept(&listener, &stop).await.expect("accepts").expect("not stopped");
    let inner = engine.adopt(inner).expect("adopted");
    let outer = engine.dial(&App::Tcp(back), SOON).await.expect("dials");
    let (served, _) = app.accept().expect("accepts");
    for peer in [&client, &served] {
        peer.set_read_timeout(Some(SOON)).expect("set");
        peer.set_write_timeout(Some(SOON)).expect("set");
    }
    (client, served, inner, outer)
}

/// At most `size` bytes of what is there; nothing is the end.
async fn read<E: Engine>(engine: &E, io: &E::Io, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut buf = ReadBuf::new(&mut bytes);
    poll_fn(|cx| engine.poll_read(io, cx, &mut buf)).await.expect("read");
    let length = buf.filled().len();
    bytes.truncate(length);
    bytes
}

/// All of them, in two slices at a time.
async fn write<E: Engine>(engine: &E, io: &E::Io, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (a, b) = bytes.split_at(bytes.len() / 2);
        let slices = [IoSlice::new(a), IoSlice::new(b)];
        let n = poll_fn(|cx| engine.poll_write(io, cx, &slices)).await.expect("written");
        bytes = &bytes[n..];
    }
}

fn flow() -> Rc<Flow> {
    Rc::new(Flow::new(Arc::default(), Arc::default(), Patience::ENDLESS, Instant::now()))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

on_both_engines! {
    /// P9: ten megabytes each way at once, then both ends of file, byte for byte.
    fn carries_both_ways_to_the_last_byte<E>(engine: E) {
        const LENGTH: usize = 10 << 20;
        let (client, served, inner, outer) = pair(&engine).await;
        let talk = |stream: TcpStream| {
            thread::spawn(move || {
                let mut writing = stream.try_clone().expect("cloned");
                let writer = thread::spawn(move || {
                    writing.write_all(&pattern(LENGTH)).expect("written");
                    writing.shutdown(Shutdown::Write).expect("shut");
                });
                let mut heard = Vec::new();
                (&stream).read_to_end(&mut heard).expect("read");
                writer.join().expect("writer");
                assert!(heard == pattern(LENGTH), "other bytes came out: {} of them", heard.len());
            })
        };
        let (a, b) = (talk(client), talk(served));
        let flow = flow();
        engine.relay(&inner, &outer, &flow).await;
        assert_eq!(flow.broken(), None);
        drop((inner, outer));
        a.join().expect("client");
        b.join().expect("application");
    }

    /// P9: after the client's end of file, the application goes on for ten megabytes.
    fn half_close_lets_the_other_way_go_on<E>(engine: E) {
        let (mut client, mut served, inner, outer) = pair(&engine).await;
        let app = thread::spawn(move || {
            let mut heard = Vec::new();
            served.read_to_end(&mut heard).expect("read");
            assert_eq!(heard, b"all of it");
            served.write_all(&pattern(10 << 20)).expect("written");
        });
        let peer = thread::spawn(move || {
            client.write_all(b"all of it").expect("written");
            client.shutdown(Shutdown::Write).expect("shut");
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).expect("read");
            assert!(heard == pattern(10 << 20));
        });
        let flow = flow();
        engine.relay(&inner, &outer, &flow).await;
        assert!(flow.is_finished(Side::Client) && flow.is_finished(Side::App));
        drop((inner, outer));
        app.join().expect("application");
        peer.join().expect("client");
    }

    /// P9: what the application had said before it reset is delivered, and who broke it is known.
    fn a_reset_is_noticed_after_the_bytes_before_it<E>(engine: E) {
        let (mut client, mut served, inner, outer) = pair(&engine).await;
        let app = thread::spawn(move || {
            served.write_all(b"last words").expect("written");
            // The relay has them before the reset can throw them away.
            let mut heard = [0; 1];
            served.read_exact(&mut heard).expect("read");
            SockRef::from(&served).set_linger(Some(Duration::ZERO)).expect("set");
        });
        let peer = thread::spawn(move || {
            let mut heard = [0; 10];
            client.read_exact(&mut heard).expect("read");
            assert_eq!(&heard, b"last words");
            client.write_all(b"!").expect("written");
            client
        });
        let flow = flow();
        engine.relay(&inner, &outer, &flow).await;
        assert_eq!(flow.broken(), Some(Side::App));
        app.join().expect("application");
        drop(peer.join().expect("client"));
    }

    /// P9: an application that resets while the client's upload is stuck must not look to the client
    /// like one that has ended: no FIN before the RST.
    fn a_reset_behind_a_stuck_upload_is_no_end_of_file<E>(engine: E) {
        let (client, mut served, inner, outer) = pair(&engine).await;
        client.set_nonblocking(true).expect("set");
        let flow = flow();
        let relaying = engine.relay(&inner, &outer, &flow);
        let upload = async {
            let mut full = 0;
            while full < 20 {
                match (&client).write(&pattern(64 << 10)) {
                    Ok(_) => full = 0,
                    Err(_) => full += 1,
                }
                engine.sleep_until(Instant::now() + Duration::from_millis(2)).await;
            }
            served.write_all(b"half an ans").expect("written");
            SockRef::from(&served).set_linger(Some(Duration::ZERO)).expect("set");
            drop(served);
        };
        tokio::join!(relaying, upload);
        assert_eq!(flow.broken(), Some(Side::App));
        let mut heard = vec![0; 64];
        while let Ok(n) = (&client).read(&mut heard) {
            assert_ne!(n, 0, "the client reads an end of file");
        }
    }

    /// A relay that is broken off ends although both peers are silent, or stuck.
    fn a_relay_broken_off_ends<E>(engine: E) {
        let (mut client, _served, inner, outer) = pair(&engine).await;
        // Nobody reads at the other end: bytes pile up inside.
        client.set_nonblocking(true).expect("set");
        let flow = flow();
        let mut relaying = Box::pin(engine.relay(&inner, &outer, &flow));
        let pile = async {
            let mut idle = 0;
            while idle < 20 {
                match client.write(&pattern(64 << 10)) {
                    Ok(_) => idle = 0,
                    Err(_) => idle += 1,
                }
                engine.sleep_until(Instant::now() + Duration::from_millis(2)).await;
            }
        };
        tokio::select! { () = &mut relaying => panic!("nobody ended it"), () = pile => {} }
        flow.break_off();
        relaying.await;
    }

    /// Bytes read and written a piece at a time are the same bytes, whatever the pieces, to the end.
    fn a_piece_at_a_time_is_all_of_it<E>(engine: E) {
        const LENGTH: usize = 3 << 20;
        let (client, _served, inner, _outer) = pair(&engine).await;
        let peer = thread::spawn(move || {
            let mut writing = client.try_clone().expect("cloned");
            let writer = thread::spawn(move || {
                writing.write_all(&pattern(LENGTH)).expect("written");
                writing.shutdown(Shutdown::Write).expect("shut");
            });
            let mut heard = Vec::new();
            (&client).read_to_end(&mut heard).expect("read");
            writer.join().expect("writer");
            heard
        });
        let io = engine.open(inner);
        let mut heard = Vec::new();
        for size in [1, 7, 100, 4096, 16 * 1024, 100_000].into_iter().cycle() {
            let piece = read(&engine, &io, size).await;
            if piece.is_empty() {
                break;
            }
            write(&engine, &io, &piece).await;
            heard.extend(piece);
        }
        assert!(heard == pattern(LENGTH), "{} bytes", heard.len());
        drop(io);
        assert!(peer.join().expect("peer") == pattern(LENGTH));
    }

    /// What was taken from the kernel and not read comes with the connection; the rest is still there.
    fn a_reclaimed_connection_lost_no_byte<E>(engine: E) {
        for read_first in [0, 1, 10_000, 16 * 1024, 40_000] {
            let (client, _served, inner, _outer) = pair(&engine).await;
            let io = engine.open(inner);
            // Somebody waits, so that an engine that takes bytes ahead has its chance to.
            let mut heard = {
                let mut waiting = pin!(read(&engine, &io, 1));
                let at = engine.sleep_until(Instant::now() + Duration::from_millis(5));
                tokio::select! { biased; _ = &mut waiting => panic!("nobody spoke"), () = at => {} }
                (&client).write_all(&pattern(100_000)).expect("written");
                client.shutdown(Shutdown::Write).expect("shut");
                waiting.await
            };
            while heard.len() < read_first {
                heard.extend(read(&engine, &io, read_first - heard.len()).await);
            }
            let (stream, unread) = engine.reclaim(io).await;
            heard.extend(unread);
            let again = engine.open(stream);
            loop {
                let piece = read(&engine, &again, 8192).await;
                if piece.is_empty() {
                    break;
                }
                heard.extend(piece);
            }
            assert!(heard == pattern(100_000), "{} bytes", heard.len());
        }
    }

    /// P11: who reads and leaves, leaves nothing behind, and the peer is told.
    fn a_reader_may_leave_at_any_time<E>(engine: E) {
        let before = open_descriptors();
        for round in 0..scale(100, 2_000) {
            let (mut client, served, inner, outer) = pair(&engine).await;
            let io = engine.open(inner);
            {
                let mut reading = pin!(read(&engine, &io, 4096));
                let at = engine.sleep_until(Instant::now() + Duration::from_micros(round as u64 % 3));
                tokio::select! { biased; _ = &mut reading => panic!("nobody spoke"), () = at => {} }
            }
            if round % 2 == 0 {
                client.write_all(b"too late").expect("written");
            }
            drop(io);
            // A FIN, or a RST if bytes were left unread.
            let mut heard = [0; 1];
            assert!(!matches!(client.read(&mut heard), Ok(1..)), "nothing was said");
            drop((client, served, outer));
        }
        assert_eq!(open_descriptors(), before, "descriptors leaked");
    }

    /// Bytes are seen to be there without being taken, by those who only look.
    fn readable_takes_nothing<E>(engine: E) {
        let (mut client, _served, inner, _outer) = pair(&engine).await;
        {
            let mut readable = pin!(engine.readable(&inner));
            let at = engine.sleep_until(Instant::now() + Duration::from_millis(2));
            tokio::select! { biased; () = &mut readable => panic!("nobody spoke"), () = at => {} }
        }
        client.write_all(b"hello").expect("written");
        engine.readable(&inner).await;
        let io = engine.open(inner);
        assert_eq!(read(&engine, &io, 100).await, b"hello");
        drop(client);
        assert_eq!(read(&engine, &io, 100).await, b"");
    }

    /// P11: dropping any future loses nothing and leaves nothing behind: four operations a round,
    /// a hundred thousand at full size.
    fn futures_may_be_dropped_at_any_time<E>(engine: E) {
        let (_client, _served, inner, outer) = pair(&engine).await;
        let socket = listen::open(SocketAddr::from(([127, 0, 0, 1], 0))).expect("listens");
        let front = socket.local_addr().expect("bound").as_socket().expect("IP");
        let listener = engine.listen(socket).expect("watched");
        let stop = CancellationToken::new();
        let before = open_descriptors();
        for round in 0..scale(2_000, 25_000) as u64 {
            let flow = flow();
            let polled = Duration::from_micros(round % 3);
            let at = || engine.sleep_until(Instant::now() + polled);
            tokio::select! { biased; _ = engine.accept(&listener, &stop) => panic!("nobody came"), () = at() => {} }
            tokio::select! { biased; () = engine.peer_left(&inner) => panic!("nobody left"), () = at() => {} }
            tokio::select! { biased; () = engine.discard(&outer) => panic!("nobody ended"), () = at() => {} }
            tokio::select! { biased; () = engine.relay(&inner, &outer, &flow) => panic!("nobody ended"), () = at() => {} }
        }
        assert_eq!(open_descriptors(), before, "descriptors leaked");
        // And nobody who connects meanwhile is lost.
        let late = TcpStream::connect(front).expect("connects");
        let (accepted, _) = engine.accept(&listener, &stop).await.expect("accepts").expect("there");
        assert_eq!(accepted.peer_addr().expect("peer").as_socket(), late.local_addr().ok());
    }

    /// The end of a listener hands out everything that had connected, and resets nobody.
    fn a_listener_that_stops_hands_out_its_backlog<E>(engine: E) {
        let socket = listen::open(SocketAddr::from(([127, 0, 0, 1], 0))).expect("listens");
        let front = socket.local_addr().expect("bound").as_socket().expect("IP");
        let listener = engine.listen(socket).expect("watched");
        let stop = CancellationToken::new();
        let waiting: Vec<_> = (0..100).map(|_| TcpStream::connect(front).expect("connects")).collect();
        stop.cancel();
        let mut handed_out = 0;
        while engine.accept(&listener, &stop).await.expect("accepts").is_some() {
            handed_out += 1;
        }
        assert_eq!(handed_out, waiting.len());
    }

    /// While it waits, a client that sends and then leaves is noticed, and nothing is read from it.
    fn leaving_is_noticed_behind_unread_bytes<E>(engine: E) {
        let (mut client, _served, inner, _outer) = pair(&engine).await;
        client.write_all(b"hello").expect("written");
        {
            let mut left = pin!(engine.peer_left(&inner));
            let early = tokio::time::timeout(Duration::from_millis(20), &mut left).await;
            assert!(early.is_err(), "bytes are not a departure");
            client.shutdown(Shutdown::Write).expect("shut");
            left.await;
        }
        let mut unread = [0; 5];
        let socket = engine.socket(&inner);
        let n = socket.recv(unsafe_init(&mut unread)).expect("still there");
        assert_eq!((n, &unread), (5, b"hello"));
    }

    /// An application whose backlog is full is given up after the timeout, on time, and the
    /// descriptor is gone.
    fn a_dial_nobody_answers_times_out<E>(engine: E) {
        let app = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
        app.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bound");
        app.listen(0).expect("listens");
        let back = app.local_addr().expect("bound").as_socket().expect("IP");
        let _fill: Vec<_> = (0..2).map(|_| {
            let fill = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
            fill.set_nonblocking(true).expect("set");
            let _ = fill.connect(&back.into());
            fill
        }).collect();
        let before = open_descriptors();
        let started = Stopwatch::start();
        let error = engine.dial(&App::Tcp(back), Duration::from_millis(300)).await.err().expect("full");
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= Duration::from_millis(300));
        assert!(!started.is_past(Duration::from_millis(900)), "{started:?}");
        assert_eq!(open_descriptors(), before);
    }

    /// More relays than the submission queue has room for, all of them busy.
    fn more_relays_than_the_queue_holds<E>(engine: E) {
        const RELAYS: usize = 1_000;
        let mut ends = Vec::new();
        let mut relays = tokio::task::JoinSet::new();
        for _ in 0..RELAYS {
            let (client, served, inner, outer) = pair(&engine).await;
            ends.push((client, served));
            let engine = engine.clone();
            relays.spawn_local(async move { engine.relay(&inner, &outer, &flow()).await });
        }
        let traffic = thread::spawn(move || {
            for (client, _) in &mut ends {
                client.write_all(b"ping").expect("written");
            }
            for (_, served) in &mut ends {
                let mut heard = [0; 4];
                served.read_exact(&mut heard).expect("read");
                served.write_all(&heard).expect("written");
            }
            for (client, _) in &mut ends {
                let mut heard = [0; 4];
                client.read_exact(&mut heard).expect("read");
                assert_eq!(&heard, b"ping");
            }
        });
        while relays.join_next().await.is_some() {}
        traffic.join().expect("peers");
    }
}

/// `recv` wants memory that may be uninitialised; initialised memory may be treated as such.
#[allow(unsafe_code, reason = "socket2's recv takes MaybeUninit")]
fn unsafe_init(buf: &mut [u8]) -> &mut [std::mem::MaybeUninit<u8>] {
    // SAFETY: MaybeUninit<u8> has the layout of u8, and recv only ever writes initialised bytes.
    unsafe { &mut *(std::ptr::from_mut(buf) as *mut [std::mem::MaybeUninit<u8>]) }
}

/// What every timeout on tokio-uring relies on. `shutdown(2)` completes a pending read
/// of a ring promptly; dropping the future would not.
#[test]
fn shutdown_completes_a_pending_ring_read() {
    tokio_uring::start(async {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let silent = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let _other = listener.accept().expect("accepts");
        let stream = Rc::new(tokio_uring::net::TcpStream::from_std(silent));
        let reading = stream.clone();
        let mut read = tokio_uring::spawn(async move { reading.read(vec![0; 16]).await.0 });
        let early = tokio::time::timeout(Duration::from_millis(20), &mut read).await;
        assert!(early.is_err(), "nobody has spoken");
        let started = Stopwatch::start();
        stream.shutdown(Shutdown::Both).expect("shut");
        let read = tokio::time::timeout(SOON, read).await.expect("in time").expect("no panic");
        assert_eq!(read.expect("an end of file"), 0);
        assert!(!started.is_past(Duration::from_secs(1)), "{started:?}");
    });
}

/// An engine that ends right after its work was dropped, again and again: it waits until the
/// kernel has nothing of it, and no descriptor stays behind.
#[test]
fn an_engine_ends_only_when_the_kernel_has_nothing_of_it() {
    let _alone = alone();
    let before = open_descriptors();
    for _ in 0..scale(50, 1_000) {
        let gauges = Arc::<Gauges>::default();
        Uring::run(false, gauges.clone(), |engine| async move {
            let (mut client, _served, inner, outer) = pair(&engine).await;
            client.write_all(&pattern(100_000)).expect("written");
            let flow = flow();
            let at = Instant::now() + Duration::from_micros(200);
            tokio::select! { () = engine.relay(&inner, &outer, &flow) => {}, () = engine.sleep_until(at) => {} }
        })
        .expect("io_uring works here");
        assert_idle(&gauges);
    }
    assert_eq!(open_descriptors(), before, "descriptors leaked");
}

/// Only for the type check: traffic is readable from other threads.
const _: fn() = || {
    fn sync<T: Send + Sync>() {}
    sync::<Traffic>();
    sync::<Gauges>();
};
