//! The contract suites, on the engines inside the process.

use std::future::Future;
use std::time::Duration;

use muster_adapters_memory::{
    MemoryBlobs, MemoryBus, MemoryCredentials, MemoryKeyValue, MemoryLog, MemoryOwnership, MemoryStore, bus,
    log,
};
use muster_ports::contract;
use tokio::time::{sleep, timeout};

/// With the clock paused, this ends at once when nothing can go on any more: a lost wake-up.
async fn ends(suite: impl Future<Output = ()>) {
    let ended = timeout(Duration::from_secs(24 * 60 * 60), suite).await;
    assert!(ended.is_ok(), "a case waits for ever");
}

#[tokio::test(start_paused = true)]
async fn log() {
    let make = async |limits: contract::log::Limits| {
        MemoryLog::new(log::Limits { payload_bytes: limits.payload_bytes, total_bytes: limits.total_bytes })
    };
    ends(contract::log::all(make)).await;
}

#[tokio::test(start_paused = true)]
async fn blobs() {
    ends(contract::blobs::all(async |bytes| MemoryBlobs::new(bytes))).await;
}

#[tokio::test(start_paused = true)]
async fn ownership() {
    ends(contract::ownership::all(async || MemoryOwnership::new())).await;
}

#[tokio::test(start_paused = true)]
async fn polls() {
    ends(contract::polls::all(async || MemoryOwnership::new())).await;
}

#[tokio::test(start_paused = true)]
async fn key_value() {
    ends(contract::kv::all(async |ttl| MemoryKeyValue::new(ttl), sleep)).await;
}

#[tokio::test(start_paused = true)]
async fn bus() {
    ends(contract::bus::all(async || MemoryBus::new(bus::Limits::default()), sleep)).await;
}

#[tokio::test(start_paused = true)]
async fn credentials() {
    ends(contract::credentials::all(async || MemoryCredentials::default())).await;
}

#[tokio::test(start_paused = true)]
async fn store() {
    ends(contract::store::all(async || MemoryStore::new())).await;
}
