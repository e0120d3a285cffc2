//! The server away, and back.

use std::time::{Duration, Instant};

use muster_adapters::postgres::{PostgresOptions, PostgresStore};
use muster_domain::agent::Agent;
use muster_domain::ids::{Partition, Timestamp};
use muster_ports::EngineError;
use muster_ports::store::{CommitError, FleetStore as _, FoldStore as _, IntentStore as _};
use muster_testkit::engines::{Engine, Postgres, engines_or_skip};
use muster_testkit::eventually;

use super::{cell, commit, key, store, write};

fn is_unavailable<T>(result: &Result<T, EngineError>) -> bool {
    matches!(result, Err(EngineError::Unavailable { engine: "Postgres", .. }))
}

async fn impatient(url: String) -> PostgresStore {
    let patience = Duration::from_secs(1);
    let options = PostgresOptions {
        acquire_timeout: patience,
        statement_timeout: patience,
        ..PostgresOptions::new(url)
    };
    PostgresStore::connect(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_survived() {
    if !engines_or_skip(&[Engine::Postgres]) {
        return;
    }
    let mut server = Postgres::start().await;
    let url = server.database().await;
    store(url.clone()).await.close().await;
    let store = impatient(url).await;
    let partition = Partition::of(&key(1));
    let row = store.partition(&cell(), partition).await.unwrap();
    let agent = |sequence_num| {
        let mut agent = Agent::new(key(1), Timestamp(1));
        agent.state.sequence_num = sequence_num;
        vec![write(agent)]
    };
    let mut row = store.commit(commit(partition, row, agent(1))).await.unwrap();
    for crash in [true, false] {
        if crash {
            server.kill9().await;
        } else {
            server.terminate().await;
        }
        for _ in 0..3 {
            let began = Instant::now();
            let refused = store.commit(commit(partition, row, agent(9))).await;
            assert!(
                matches!(refused, Err(CommitError::Engine(EngineError::Unavailable { .. }))),
                "{refused:?}"
            );
            assert!(is_unavailable(&store.ping().await));
            assert!(is_unavailable(&store.revisions().await));
            assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        }
        server.restart().await;
        eventually(Duration::from_secs(20), async || store.ping().await.map_err(|error| error.to_string()))
            .await;
        assert_eq!(store.partition(&cell(), partition).await.unwrap(), row, "what was answered is there");
        row = store.commit(commit(partition, row, agent(row.position.0 + 1))).await.unwrap();
        let found = store.agents(&cell(), &[key(1)]).await.unwrap();
        assert_eq!(found[0].agent.state.sequence_num, row.position.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_died_unused_are_not_noticed() {
    if !engines_or_skip(&[Engine::Postgres]) {
        return;
    }
    let mut server = Postgres::start().await;
    let store = store(server.database().await).await;
    futures_util::future::join_all((0..10).map(|_| store.ping())).await;
    server.kill9().await;
    server.restart().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for result in futures_util::future::join_all((0..10).map(|_| store.ping())).await {
        result.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_answer_holds_no_call_for_ever() {
    if !engines_or_skip(&[Engine::Postgres]) {
        return;
    }
    let server = Postgres::start().await;
    let url = server.database().await;
    store(url.clone()).await.close().await;
    let store = impatient(url.clone()).await;
    store.ping().await.unwrap();
    server.stop().await;
    let calls = (0..25).map(async |_| {
        let began = Instant::now();
        let result = store.revisions().await;
        assert!(is_unavailable(&result), "{result:?}");
        began.elapsed()
    });
    let slowest = futures_util::future::join_all(calls).await.into_iter().max().unwrap();
    assert!(slowest < Duration::from_secs(6), "{slowest:?}");
    let refused = PostgresStore::connect(PostgresOptions {
        acquire_timeout: Duration::from_secs(1),
        ..PostgresOptions::new(url)
    });
    let refused = refused.await.unwrap_err();
    assert!(refused.to_string().contains("did not answer within 1s"), "{refused}");
    server.cont().await;
    eventually(Duration::from_secs(20), async || store.ping().await.map_err(|error| error.to_string())).await;
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_broken_off() {
    let Some(server) = super::server().await else { return };
    let url = server.database().await;
    store(url.clone()).await.close().await;
    let store = impatient(url.clone()).await;
    let mut blocker = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE intents").execute(&mut blocker).await.unwrap();
    let error = store.revisions().await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("statement timeout"), "{error}");
}
