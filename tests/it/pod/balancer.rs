//! A balancer of connections, as kube-proxy is one: it sends each new connection to one of the pods it knows
//! of, in turn, and learns late which those are. Nobody is told when a pod goes: an open connection stays
//! where it is, and one that is sent to a pod that is closed is refused.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::support::namespace::Space;

pub(super) struct Balancer {
    /// Where it listens, in the network it was started in.
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// In force from when on.
    news: Mutex<Vec<(Instant, Vec<SocketAddr>)>>,
    stop: Notify,
}

impl Balancer {
    pub(super) fn start(place: &Space) -> Self {
        let shared = Arc::<Shared>::default();
        let (address, thread) = place.enter(|| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.set_nonblocking(true).expect("O_NONBLOCK");
            let address = listener.local_addr().expect("bound");
            let shared = shared.clone();
            (address, std::thread::spawn(move || serve(listener, &shared)))
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// The pods there are, which it learns after `delay`.
    pub(super) fn tell(&self, pods: Vec<SocketAddr>, delay: Duration) {
        self.shared.news().push((Instant::now() + delay, pods));
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.shared.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn news(&self) -> MutexGuard<'_, Vec<(Instant, Vec<SocketAddr>)>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pick(&self, turn: usize) -> Option<SocketAddr> {
        let news = self.news();
        let now = Instant::now();
        let (_, pods) = news.iter().rfind(|(from, _)| *from <= now)?;
        pods.get(turn % pods.len().max(1)).copied()
    }
}

fn serve(listener: std::net::TcpListener, shared: &Arc<Shared>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener).expect("a listener");
        for turn in 0.. {
            let client = tokio::select! {
                accepted = listener.accept() => accepted.expect("it can accept").0,
                () = shared.stop.notified() => return,
            };
            tokio::spawn(carry(client, shared.clone(), turn));
        }
    });
}

/// What goes wrong shows at the client, who is closed. The pod is chosen only now: whoever had to wait for this
/// task is not sent to one that was known long ago.
async fn carry(mut client: TcpStream, shared: Arc<Shared>, turn: usize) {
    let Some(pod) = shared.pick(turn) else { return };
    let Ok(mut server) = TcpStream::connect(pod).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}
