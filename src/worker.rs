//! One thread = one engine = one accept loop per port. Workers share the listening sockets and the
//! gates, nothing else: a worker that is stuck strands nobody in a backlog of its own.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use socket2::Socket;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::conn::{self, Entrance};
use crate::io::epoll::Epoll;
use crate::io::probe::Selected;
use crate::io::uring::Uring;
use crate::io::{Engine, Gauges};

/// What a worker serves: a port or all captured ones, a descriptor of the listening socket, and a token to be dropped
/// when nothing more will be accepted from it.
pub type Listening = Vec<(Entrance, Socket, TaskTrackerToken)>;

/// Start worker `number`, which says its number on `up` when it accepts. The thread ends when its listeners have closed and its connections have
/// ended, or with the error that kept it from starting.
pub fn start(
    number: usize,
    engine: Selected,
    listening: Listening,
    gauges: Arc<Gauges>,
    up: Sender<usize>,
) -> io::Result<JoinHandle<io::Result<()>>> {
    thread::Builder::new().name(format!("tidegate-w{number}")).spawn(move || {
        let worked = match engine {
            Selected::Epoll => Epoll::run(gauges, |engine| work(engine, number, listening, up)),
            Selected::Uring { sqpoll } => {
                Uring::run(sqpoll, gauges, |engine| work(engine, number, listening, up))
            }
        };
        worked.inspect_err(|error| tracing::error!(number, %error, "a worker has failed"))
    })
}

/// The whole life of a worker.
async fn work<E: Engine>(engine: E, number: usize, listening: Listening, up: Sender<usize>) {
    let connections = TaskTracker::new();
    let accepting = TaskTracker::new();
    for (entrance, socket, token) in listening {
        match engine.listen(socket) {
            Ok(listener) => {
                let accept = conn::accept(engine.clone(), entrance, listener, connections.clone());
                engine.spawn(accepting.track_future(async move {
                    accept.await;
                    drop(token);
                }));
            }
            Err(error) => {
                tracing::error!(port = %entrance.port().listen, %error, "cannot watch the listener");
            }
        }
    }
    // The accept loops first: who hears of it finds them waiting.
    tokio::task::yield_now().await;
    let _ = up.send(number);
    drop(up);
    accepting.close();
    accepting.wait().await;
    connections.close();
    connections.wait().await;
}
