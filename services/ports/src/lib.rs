//! What Muster's roles ask of engines: the log, blobs, ownership, the bus, key-value, the store.
//!
//! Each port is a trait of a few methods; its documentation states the consistency that a caller
//! may rely on. [`contract`] holds the suite that every adapter passes.

pub mod access;
pub mod blobs;
pub mod bus;
pub mod contract;
pub mod credentials;
pub mod epochs;
pub mod floors;
pub mod host;
pub mod kv;
pub mod log;
pub mod ownership;
pub mod polls;
pub mod rollouts;
pub mod seldom;
pub mod store;
pub mod trace;

pub use host::{Clock, Random, Spawner};

/// Time to live of the bucket of leases: who does not renew for this long is gone.
pub const LEASE_TTL: std::time::Duration = std::time::Duration::from_secs(10);

/// An engine that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine is away, slow or full: the same call may succeed later.
    #[error("{engine} is not available: {reason}")]
    Unavailable {
        /// Which engine.
        engine: &'static str,
        /// What it said.
        reason: String,
    },
    /// The engine holds something that cannot be understood: trying again does not help.
    #[error("{engine} holds unusable data in {place}: {reason}")]
    Corrupt {
        /// Which engine.
        engine: &'static str,
        /// Table, bucket or stream, and key.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
}
