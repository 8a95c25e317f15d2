//! THE STORY of one connection, one file per stage.
//!
//! ```text
//! accept → admit → connect → relay → release
//! ```

use std::time::Duration;

/// How a port treats its connections; everything but admission. All of it can change live, for
/// connections accepted from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long the application may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long nothing may move before a connection is closed. `None`: for ever.
    pub idle_timeout: Option<Duration>,
    /// How long a side may leave bytes untaken before the connection is reset.
    pub write_stall_timeout: Duration,
    /// How long the application may take to end once its client has left.
    pub abandon_timeout: Duration,
    /// What refusing a connection looks like to the client.
    pub tcp_refuse: TcpRefuse,
    /// What the client's FIN means while it waits in the queue.
    pub queued_half_close: QueuedHalfClose,
    /// Whether the application is told the client's address in a PROXY protocol v2 header.
    pub send_proxy_protocol: bool,
}

/// What refusing a TCP connection looks like to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpRefuse {
    /// FIN: the client reads an end of file.
    Close,
    /// RST: the client reads "connection reset".
    Reset,
    /// Nobody is refused while limit and queue are full: connections wait in the kernel's backlog.
    Hold,
}

/// What the client's FIN means while it waits in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueuedHalfClose {
    /// The client has left.
    Gone,
    /// The client has said all it has to say and waits for the answer.
    Keep,
}
