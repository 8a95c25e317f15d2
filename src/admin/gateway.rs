//! The gateway as the admin faces see it: a handle that `app` implements, so that nothing here
//! knows how forwarding is done.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::journal::Journal;
use crate::lifecycle::Lifecycle;
use crate::metrics::PortMetrics;
use crate::probes::Probes;

use super::status::{Status, Vitals};

/// What the admin faces may ask of the gateway. Called on the control-plane thread; every answer is
/// a snapshot taken when it is asked for.
pub trait Gateway: Send + Sync + 'static {
    /// What it is doing.
    fn status(&self) -> Status;

    /// The instruments of each port, in the order of [`Status::ports`].
    fn ports(&self) -> Vec<Arc<PortMetrics>>;

    /// What only the metrics show.
    fn vitals(&self) -> Vitals;

    /// Every setting in force and who said so.
    fn settings(&self) -> Vec<Setting>;

    /// Every open connection.
    fn connections(&self) -> Vec<Connection>;

    /// What was refused or broke of late.
    fn journal(&self) -> Arc<Journal>;

    /// The application's own probes.
    fn probes(&self) -> Arc<Probes>;

    /// The phases and the drain.
    fn lifecycle(&self) -> Lifecycle;

    /// Change settings, all of them or none. The answer says what was applied, or every mistake.
    fn set(&self, changes: BTreeMap<String, String>) -> Result<Vec<String>, Vec<String>>;

    /// Change how much is logged.
    fn set_log_level(&self, directive: &str) -> Result<(), String>;
}

/// One setting in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Its name.
    pub key: &'static str,
    /// The listening port, for a setting of a port.
    pub port: Option<u16>,
    /// The value, as it was written.
    pub value: String,
    /// Who said so.
    pub origin: String,
}

/// One open connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Connection {
    /// Unique in this process.
    pub id: u64,
    /// The listening address it came to.
    pub port: String,
    /// The client's address.
    pub client: String,
    /// `queued`, `connecting`, `relaying` or `ending`.
    pub stage: &'static str,
    /// How long it has been open.
    pub seconds: f64,
    /// Bytes read from the client.
    pub bytes_in: u64,
    /// Bytes read from the application.
    pub bytes_out: u64,
}
