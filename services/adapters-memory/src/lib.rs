//! Engines inside the process: log, blobs, ownership, key-value, bus and store.
//!
//! `muster serve` runs on all but the store when it is the whole system; simulation and tests run on
//! all of them. Nothing here survives the process. Time is tokio's clock, so that tests can hold it.

mod access;
pub mod blobs;
pub mod bus;
pub mod credentials;
pub mod kv;
pub mod log;
pub mod ownership;
pub mod store;

pub use blobs::MemoryBlobs;
pub use bus::MemoryBus;
pub use credentials::MemoryCredentials;
pub use kv::MemoryKeyValue;
pub use log::MemoryLog;
pub use ownership::MemoryOwnership;
pub use store::MemoryStore;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks for a short while, never across an await. Where another thread panicked with the lock held,
/// the data is still whole: no change here is made in steps that can panic between them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
