//! A stand-in for the gate's settings until the gate is merged.

use std::num::NonZeroU32;
use std::time::Duration;

/// How many shadow limits a port may have.
pub const MAX_SHADOW_LIMITS: usize = 16;

/// What a gate does with its decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are obeyed.
    Enforce,
    /// They are counted only.
    Observe,
    /// None is made.
    Off,
}

/// The settings of one gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What the gate does with its decisions.
    pub mode: Mode,
    /// Slots at once; `None`: as many as come.
    pub limit: Option<NonZeroU32>,
    /// Places in the queue.
    pub queue_length: u32,
    /// The longest wait.
    pub queue_timeout: Duration,
    /// Slots and places one client may have.
    pub per_client_limit: Option<NonZeroU32>,
    /// Limits that are only tried out.
    pub shadow_limits: Vec<NonZeroU32>,
}
