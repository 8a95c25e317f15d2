//! Every way a connection or request can end, and why one may be refused: whose fault it was, what the client
//! is told, and the label it is counted under. The words are few and fixed, because they are metric
//! labels, header details and span attributes at once.
//!
//! Always true: each connection (HTTP: each request) that asks for a slot yields exactly one
//! [`Outcome`].

/// Why work was not admitted, or why admitted work could not be carried to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The port is at its limit and has no queue.
    LimitReached,
    /// The port is at its limit and its queue is full.
    QueueFull,
    /// It waited as long as `queue-timeout` allows and no slot came free.
    QueueTimeout,
    /// The client left while it waited.
    ClientGone,
    /// The gateway is going away and serves only what it already had.
    Draining,
    /// This client alone has as much active and queued as one client may have.
    PerClientLimit,
    /// It could not be served before its deadline.
    DeadlineUnmeetable,
    /// The gateway itself holds as many connections as it may.
    MaxConnections,
    /// The connection would have come back to the gateway itself, or leads nowhere else.
    Loop,
    /// The client left, the application did not finish in `abandon-timeout`, and was reset.
    Abandoned,
    /// The application refused the connection, or could not be reached.
    UpstreamRefused,
    /// The application did not accept the connection within `connect-timeout`.
    UpstreamTimeout,
    /// A request that no proxy of this kind serves, or no whole one; it never asked for a slot.
    NotServed,
}

/// Who has to change something if this outcome is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody: it went as it should.
    Nobody,
    /// The client left, stalled or broke off.
    Client,
    /// The application refused, stalled or broke off.
    Application,
    /// The gateway decided so: a limit, a guard, a drain.
    Gateway,
}

/// How one accepted connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Carried to the end in both directions.
    Served,
    /// Never reached the application.
    Refused(Reason),
    /// Reached the application; the client reset it.
    ClientReset,
    /// Reached the application; the application reset it.
    AppReset,
    /// Nothing moved for `idle-timeout`.
    IdleTimeout,
    /// The client did not take bytes for `write-stall-timeout`.
    ClientStalled,
    /// The application did not take bytes for `write-stall-timeout`.
    AppStalled,
    /// The client had left and the application did not finish within `abandon-timeout`.
    Abandoned,
    /// Still open at the end of the drain, and cut.
    Cut,
    /// The gateway failed: a bug, or the machine is out of something.
    Failed,
}

impl Reason {
    /// Every reason, in the order they are documented.
    pub const ALL: [Self; 13] = [
        Self::LimitReached,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::ClientGone,
        Self::Draining,
        Self::PerClientLimit,
        Self::DeadlineUnmeetable,
        Self::MaxConnections,
        Self::Loop,
        Self::Abandoned,
        Self::UpstreamRefused,
        Self::UpstreamTimeout,
        Self::NotServed,
    ];

    /// The metric label, header detail and span attribute.
    pub const fn label(self) -> &'static str {
        match self {
            Self::LimitReached => "limit_reached",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::ClientGone => "client_gone",
            Self::Draining => "draining",
            Self::PerClientLimit => "per_client_limit",
            Self::DeadlineUnmeetable => "deadline_unmeetable",
            Self::MaxConnections => "max_connections",
            Self::Loop => "loop",
            Self::Abandoned => "abandoned",
            Self::UpstreamRefused => "upstream_refused",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::NotServed => "not_served",
        }
    }

    /// Whether it keeps somebody from getting a slot who asked for one; most others are found out with
    /// a slot in hand.
    pub const fn is_of_the_gate(self) -> bool {
        !matches!(
            self,
            Self::Abandoned | Self::UpstreamRefused | Self::UpstreamTimeout | Self::NotServed
        )
    }

    /// Whether nobody was turned away: its client left, or asked for what nobody can have.
    pub const fn is_its_clients(self) -> bool {
        matches!(self, Self::ClientGone | Self::NotServed)
    }

    /// Whether there would have been a slot if there were more of them.
    pub const fn is_want_of_slots(self) -> bool {
        matches!(
            self,
            Self::LimitReached
                | Self::QueueFull
                | Self::QueueTimeout
                | Self::ClientGone
                | Self::DeadlineUnmeetable
        )
    }

    /// Who has to change something if this is not wanted.
    pub const fn fault(self) -> Fault {
        match self {
            Self::ClientGone | Self::PerClientLimit | Self::NotServed => Fault::Client,
            Self::UpstreamRefused | Self::UpstreamTimeout | Self::Abandoned => Fault::Application,
            _ => Fault::Gateway,
        }
    }
}

impl Outcome {
    /// Every outcome but the refusals, which are counted by [`Reason`].
    pub const CARRIED: [Self; 9] = [
        Self::Served,
        Self::ClientReset,
        Self::AppReset,
        Self::IdleTimeout,
        Self::ClientStalled,
        Self::AppStalled,
        Self::Abandoned,
        Self::Cut,
        Self::Failed,
    ];

    /// Every outcome there is: the refusals by reason, then the rest.
    pub fn all() -> impl Iterator<Item = Self> {
        Reason::ALL.into_iter().map(Self::Refused).chain(Self::CARRIED)
    }

    /// Its place in [`all`](Self::all).
    pub fn index(self) -> usize {
        match self {
            Self::Refused(reason) => reason as usize,
            carried => {
                let at = Self::CARRIED.iter().position(|other| *other == carried);
                Reason::ALL.len() + at.expect("every outcome that is no refusal is in CARRIED")
            }
        }
    }

    /// The reason of a refusal.
    pub const fn reason(self) -> Option<Reason> {
        match self {
            Self::Refused(reason) => Some(reason),
            _ => None,
        }
    }

    /// The metric label of the outcome, without the reason of a refusal.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Refused(_) => "refused",
            Self::ClientReset => "client_reset",
            Self::AppReset => "app_reset",
            Self::IdleTimeout => "idle_timeout",
            Self::ClientStalled => "client_stalled",
            Self::AppStalled => "app_stalled",
            Self::Abandoned => "abandoned",
            Self::Cut => "cut",
            Self::Failed => "failed",
        }
    }

    /// The label of a refusal's reason, or of the outcome if it is none: the finer of the two.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Refused(reason) => reason.label(),
            carried => carried.label(),
        }
    }

    /// Who has to change something if this is not wanted.
    pub const fn fault(self) -> Fault {
        match self {
            Self::Served => Fault::Nobody,
            Self::Refused(reason) => reason.fault(),
            Self::ClientReset | Self::ClientStalled => Fault::Client,
            Self::AppReset | Self::AppStalled | Self::IdleTimeout | Self::Abandoned => {
                Fault::Application
            }
            Self::Cut | Self::Failed => Fault::Gateway,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_knows_its_place() {
        let places: Vec<_> = Outcome::all().map(Outcome::index).collect();
        assert_eq!(places, (0..Reason::ALL.len() + Outcome::CARRIED.len()).collect::<Vec<_>>());
    }
}
