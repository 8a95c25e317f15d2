//! Capture: have the kernel hand a pod's inbound connections to the gateway, and find out where each
//! was going.
//!
//! ```text
//!  tidegate capture install ── rules ──→ nftables: one table over netlink, all or nothing
//!                                        └ read back ── proof: NAT and original destination work
//!  tidegate run --capture   ── origin ─→ where a captured connection was going, and three guards
//!  metrics                  ── sockets → connections that reach the application beside the gateway
//! ```
//!
//! Always true: only the table `inet tidegate` is ever written, as typed rules and as a whole; what is
//! not ours is left as it is, byte for byte. Serving captured traffic needs no capability.

mod install;
mod netlink;
mod nftables;
mod ports;
mod proof;
mod rules;

pub mod origin;
pub mod place;
pub mod sockets;

pub use install::{
    CaptureError, Checked, Installed, Removed, check, install, installed, remove, try_rules,
};
pub use place::Place;
pub use ports::PortSet;
pub use proof::has_legacy_nat;
pub use rules::Plan;

/// Where captured connections go unless somebody says otherwise.
pub const REDIRECT_PORT: u16 = 15801;

/// Taken for the moment in which NAT is proved. Nobody may listen there.
pub const PROOF_PORT: u16 = 15819;

/// Ports of ours that are never redirected: the proof's, admin, probes, metrics.
pub const OWN_PORTS: std::ops::RangeInclusive<u16> = PROOF_PORT..=15822;
