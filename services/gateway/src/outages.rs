//! What a gateway cannot do while an engine is away, each told once a minute rather than once a message.

use muster_ports::seldom::Seldom;

/// One for each kind of failure.
#[derive(Default)]
pub(crate) struct Outages {
    /// Connections are not accepted.
    pub(crate) accept: Seldom,
    /// Agents are not claimed.
    pub(crate) claim: Seldom,
    /// Control does not decide on contests.
    pub(crate) contest: Seldom,
    /// Reports are not stored.
    pub(crate) publish: Seldom,
    /// Ownership does not learn of progress.
    pub(crate) settle: Seldom,
    /// Agents are not given back.
    pub(crate) release: Seldom,
    /// The lease is not renewed.
    pub(crate) lease: Seldom,
    /// Floors are not read.
    pub(crate) floors: Seldom,
    /// The end of requests of agents that poll is not recorded.
    pub(crate) polls: Seldom,
    /// Offers that wait for agents that poll are not fetched.
    pub(crate) mail: Seldom,
    /// Somebody is not let in.
    pub(crate) denied: Seldom,
    /// A credential ends soon.
    pub(crate) expiring: Seldom,
    /// Credentials are not read.
    pub(crate) credentials: Seldom,
    /// Control's requests are not answered.
    pub(crate) requests: Seldom,
}
