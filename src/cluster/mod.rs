//! What Kubernetes tells a pod about itself: its annotations and its namespace's ConfigMap as files, and,
//! if asked, its own object from the API server.
//!
//! ```text
//! kubelet ──→ files (downward API, ConfigMap) ──inotify──┐
//!                                                        ├──→ views: which annotations are the newest
//! API server ──→ pod: list, watch ───────────────────────┘
//! ```
//!
//! Always true: nothing here knows what a setting is, or touches traffic; what is read is bounded; none
//! of it ever ends the process, and while the API server is away nothing waits for it.

pub mod api;
mod backoff;
pub mod downward;
pub mod files;
mod lines;
pub mod pod;
mod views;

pub use views::{Annotations, Views};
