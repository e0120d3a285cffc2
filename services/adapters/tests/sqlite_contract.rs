//! The store's contract, on SQLite.

use std::cell::Cell;

use muster_adapters::sqlite::SqliteStore;
use muster_ports::contract;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store() {
    let directory = tempfile::tempdir().unwrap();
    let count = Cell::new(0);
    let make = async || {
        count.set(count.get() + 1);
        let path = directory.path().join(count.get().to_string()).join("muster.db");
        SqliteStore::open(path).await.unwrap()
    };
    contract::store::all(make).await;
    contract::credentials::all(make).await;
}
