//! What a control cannot do while an engine is away, each told once a minute rather than once a message.

use muster_ports::seldom::Seldom;

/// One for each kind of failure.
#[derive(Default)]
pub(crate) struct Outages {
    /// Partitions are not worked on.
    pub(crate) workers: Seldom,
    /// Intent is not read.
    pub(crate) intent: Seldom,
    /// Commands are not read.
    pub(crate) commands: Seldom,
    /// Floors are not raised.
    pub(crate) floors: Seldom,
    /// The other controls are not seen.
    pub(crate) members: Seldom,
    /// Lists of components are not stored or looked up.
    pub(crate) components: Seldom,
    /// Rollouts are not looked at.
    pub(crate) rollouts: Seldom,
    /// Deliveries are not sent.
    pub(crate) deliveries: Seldom,
    /// Blobs are not removed.
    pub(crate) blobs: Seldom,
    /// Requests of gateways are not answered.
    pub(crate) requests: Seldom,
    /// Contested instance_uids are left undecided.
    pub(crate) contests: Seldom,
    /// Mail for agents that poll is not delivered.
    pub(crate) mail: Seldom,
}
