//! The control plane of Tidegate. (The whole map comes with the data plane.)

pub mod admin;
pub mod cli;
pub mod client;
pub mod config;
pub mod conn;
pub mod lifecycle;
pub mod limit;
pub mod metrics;
pub mod outcome;
pub mod settings;
pub mod telemetry;

/// A stand-in for the words of `io` until the engines are merged.
pub mod io {
    use std::net::SocketAddr;
    use std::path::PathBuf;

    /// Where the application listens.
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    pub enum App {
        /// A TCP address.
        Tcp(SocketAddr),
        /// A Unix socket's path.
        Unix(PathBuf),
    }

    /// Which engine to use.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub enum EngineChoice {
        /// io_uring where it works, epoll otherwise.
        #[default]
        Auto,
        /// io_uring, or do not start.
        Uring,
        /// epoll.
        Epoll,
    }
}
