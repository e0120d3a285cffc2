//! The contract of each port, as suites that every adapter passes.
//!
//! A suite is given a fresh, empty engine and panics where the engine breaks the contract.
#![expect(clippy::unwrap_used, clippy::panic, reason = "these are tests, for adapters' test targets to call")]

pub mod blobs;
pub mod bus;
pub mod credentials;
pub mod kv;
pub mod log;
pub mod ownership;
mod poll;
pub mod polls;
pub mod store;
