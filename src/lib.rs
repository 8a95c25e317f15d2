//! Tidegate holds back the tide: it stands in front of one TCP server, lets in only as many
//! connections at once as that can carry, makes a bounded number wait, and refuses the rest.
//!
//! ```text
//!                      limit: Admit · Wait · Refuse
//!                        │
//! clients ──→ accept ──→ admit ──→ connect ──→ relay ──→ release      conn, on a worker thread
//!                └────────┴───────────┴──────────┴── io: epoll or io_uring
//!
//! people, kubelets, scrapers ──→ admin ──→ limits in, snapshots out   app, on the main thread
//! ```
//!
//! The modules in layer order; a module imports only from above (`tests/layers.rs`):
//!
//! - [`escape`] bytes of strangers as text that can be shown
//! - [`outcome`] every way a connection can end, and why one may be refused
//! - [`telemetry`] logs and traces, each from a bounded queue
//! - [`lifecycle`] the phases of the process, and its drain
//! - [`journal`] what was refused or broke of late, with the numbers that say why
//! - [`access`] the access log, from a bounded queue
//! - [`io`] moves bytes: two engines behind one face, and the ladder that chooses
//! - [`capture`] redirects a pod's inbound connections, and tells where each was going
//! - [`probes`] the application's own probes, done for the kubelet beside the gate
//! - [`metrics`] every instrument of the data plane
//! - [`limit`] decides: the gate, its queue, permits; no socket, no runtime, no clock
//! - [`conn`] the story of one connection, one file per stage
//! - [`worker`] one thread, one engine, one accept loop per port
//! - [`cluster`] what Kubernetes tells a pod: annotations, a ConfigMap, deletion
//! - [`settings`] the table of every setting
//! - [`cli`] what the user typed
//! - [`admin`] probes, metrics, status, and the control socket
//! - [`client`] the commands that talk to a running gateway
//! - [`inject`] a pod goes in, a patch that gives it a gateway comes out
//! - [`manifest`] manifests in files: injected, brought back, checked
//! - [`webhook`] shows new pods to `inject` when the API server asks
//! - [`config`] flags, environment and file become every module's own configuration
//! - [`app`] builds every part, wires them, runs until drained
//! - `doctor` what of this machine the gateway depends on, and how it is
//! - `demo` a surge with and without the gateway
//!
//! The binary adds nothing but exit codes. ARCHITECTURE.md has the threads, the ports and the reasons.

pub mod access;
pub mod admin;
pub mod app;
pub mod capture;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod conn;
pub mod demo;
pub mod doctor;
pub mod escape;
pub mod inject;
pub mod io;
pub mod journal;
pub mod lifecycle;
pub mod limit;
pub mod manifest;
pub mod metrics;
pub mod outcome;
pub mod probes;
pub mod settings;
pub mod telemetry;
pub mod webhook;
pub mod worker;
