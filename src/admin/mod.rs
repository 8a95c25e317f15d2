//! The admin faces: what people, kubelets and scrapers see of the gateway, and what its owner may
//! change.
//!
//! ```text
//! probe    0.0.0.0:15821     /livez /readyz /startupz, the application's probes, the wait for a drain
//! metrics  0.0.0.0:15822     /metrics
//! admin    127.0.0.1:15820   read-only: page, status, settings, connections, refusals, probes, metrics
//! control  Unix socket 0600  all of it, and everything that changes something
//! ```
//!
//! Always true: nothing here runs on a data-plane thread; no client, however slow or many, keeps
//! others from being answered; what changes something is reachable by the socket's owner only.

pub(crate) mod answer;
mod bind;
mod control;
mod document;
pub(crate) mod exposition;
mod faces;
mod gateway;
mod guard;
mod history;
pub(crate) mod negotiate;
mod page;
mod patience;
pub(crate) mod process;
mod scrape;
mod serve;
mod status;

pub mod explain;
pub mod story;

pub use bind::{BindError, Bound, Faces, bind, try_control};
pub use gateway::{Connection, Gateway, Setting};
pub use status::{
    Changes, Counts, DroppedLines, Engine, OwnPod, Pools, PortStatus, PortVitals, Reload, Remark,
    Status, Traces, Vitals,
};
