//! Bringing the schema up to date.

use futures_util::future::join_all;
use muster_adapters::postgres::{PostgresOptions, PostgresStore};
use muster_ports::EngineError;
use muster_ports::store::FleetStore as _;
use muster_testkit::engines::Postgres;

use super::server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_processes_one_migrates_and_the_others_wait() {
    let Some(server) = server().await else { return };
    let url = server.database().await;
    let stores = join_all((0..5).map(|_| PostgresStore::connect(PostgresOptions::new(&url)))).await;
    let stores: Vec<_> = stores.into_iter().map(Result::unwrap).collect();
    for migrated in join_all(stores.iter().map(PostgresStore::migrate)).await {
        migrated.unwrap();
    }
    let done = "SELECT bool_and(success) AND count(*) = max(version) FROM _sqlx_migrations";
    assert_eq!(Postgres::psql(&url, done).await, "t");
    let ids = join_all(stores.iter().map(|store| store.cluster())).await;
    let ids: Vec<_> = ids.into_iter().map(Result::unwrap).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    stores[0].migrate().await.unwrap();
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = \
                 (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(Postgres::psql(&url, locks).await, "0", "a lock was left");
}

#[tokio::test]
async fn a_schema_of_a_newer_version_is_refused() {
    let Some(server) = server().await else { return };
    let url = server.database().await;
    let store = super::store(url.clone()).await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (1000, 'later', true, 'x', 0)";
    Postgres::psql(&url, newer).await;
    for _ in 0..2 {
        let refused = store.migrate().await.unwrap_err();
        assert!(matches!(refused, EngineError::Corrupt { .. }), "{refused:?}");
        let told = refused.to_string();
        assert!(told.contains("a newer version of this program has been here"), "{told}");
        assert!(told.contains("the schema has number 1000, and this version knows them up to"), "{told}");
        assert!(told.contains(&format!("127.0.0.1:{}", server.port())), "{told}");
    }
}

#[tokio::test]
async fn a_database_without_the_schema_is_told_of() {
    let Some(server) = server().await else { return };
    let store = PostgresStore::connect(PostgresOptions::new(server.database().await)).await.unwrap();
    store.ping().await.unwrap();
    let error = store.cluster().await.unwrap_err();
    assert!(matches!(error, EngineError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("relation \"cluster\" does not exist"), "{error}");
}

#[tokio::test]
async fn a_database_in_another_encoding_is_refused() {
    let Some(server) = server().await else { return };
    let by_socket = format!(
        "postgresql://postgres@/postgres?host={}&port={}",
        server.directory().display(),
        server.port()
    );
    let latin = "CREATE DATABASE latin OWNER muster ENCODING 'LATIN1' TEMPLATE template0";
    Postgres::psql(&by_socket, latin).await;
    let url = server.url().replace("/muster", "/latin").replace("//latin", "//muster");
    let refused = PostgresStore::connect(PostgresOptions::new(url)).await.unwrap_err().to_string();
    assert!(refused.contains("/latin: its encoding is LATIN1: make the database with"), "{refused}");
}
