//! A server process under test, played by this test program itself: see [`stub`].

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod stub;

use std::time::Duration;

use muster_testkit::{DEADLINE, Muster, MusterBuilder, StartError, eventually};
use serde_json::json;

/// A builder of the stub in one of its modes.
fn stub(mode: &str) -> MusterBuilder {
    let program = std::env::current_exe().unwrap().into_os_string().into_string().unwrap();
    let words = [program.as_str(), "--exact", "plays_the_server", "--nocapture", "--"];
    Muster::builder("muster").under(words).env("STUB", mode)
}

/// Does nothing as a test; run by the others it is the program that they start.
#[tokio::test]
async fn plays_the_server() {
    if let Ok(mode) = std::env::var("STUB") {
        stub::main(&mode).await;
    }
}

#[tokio::test]
async fn a_server_starts_and_answers() {
    let muster = stub("good").start().await;
    assert_eq!(muster.api().get_text("/ready").await.unwrap(), "ready");
    assert_eq!(muster.api().post("/echo", &json!({"a": 1})).await.unwrap(), json!({"a": 1}));
    let typed = muster.api().post_text("/echo", "application/yaml", "[1, 2]").await.unwrap();
    assert_eq!(typed, json!([1, 2]));
    let missing = muster.api().get("/absent").await.unwrap_err();
    assert_eq!((missing.status, missing.detail()), (404, "nothing at /absent"));
    assert_eq!(muster.api().metrics().await.unwrap().sum("stub_requests_total"), 3.0);
    assert!(muster.resident_bytes() > 100_000);
    muster.assert_no_errors();
}

#[tokio::test]
async fn logs_are_kept_and_errors_found() {
    let muster = stub("logs-error").start().await;
    let line = muster.wait_for_log("something broke", DEADLINE).await;
    assert!(muster.logs().contains(&line));
    let found = tokio::task::spawn_blocking(move || muster.assert_no_errors()).await;
    assert!(found.is_err());
}

#[tokio::test]
async fn data_and_ports_survive_a_crash() {
    let mut muster = stub("good").start().await;
    let (url, first) = (muster.opamp_url(), muster.pid());
    muster.kill9().await;
    assert_eq!(muster.api().get("/ready").await.unwrap_err().status, 0);
    muster.restart().await;
    assert_ne!(muster.pid(), first);
    assert_eq!(muster.opamp_url(), url);
    assert_eq!(std::fs::read_to_string(muster.data_dir().join("starts")).unwrap(), "..");
    muster.terminate().await;
    muster.restart().await;
    assert_eq!(muster.logs().iter().filter(|line| line.contains("started")).count(), 3);
}

#[tokio::test]
async fn a_stopped_process_goes_on_after_a_signal() {
    let muster = stub("good").start().await;
    muster.signal("STOP").await;
    let status = format!("/proc/{}/status", muster.pid());
    let state = async |wanted: &str| {
        let text = std::fs::read_to_string(&status).unwrap();
        let line = text.lines().find(|line| line.starts_with("State:")).unwrap().to_owned();
        if line.contains(wanted) { Ok(()) } else { Err(line) }
    };
    eventually(DEADLINE, async || state("stopped").await).await;
    muster.signal("CONT").await;
    eventually(DEADLINE, async || state("sleeping").await).await;
}

#[tokio::test]
async fn a_process_ends_with_its_owner() {
    let muster = stub("good").start().await;
    let process = format!("/proc/{}/stat", muster.pid());
    drop(muster);
    let stat = std::fs::read_to_string(process);
    assert!(stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z ")));
}

#[tokio::test]
async fn taken_ports_are_replaced() {
    let muster = stub("taken-once").start().await;
    assert_eq!(muster.api().get_text("/ready").await.unwrap(), "ready");
}

#[tokio::test]
async fn a_server_that_gives_up_says_why() {
    let error = stub("refuses").try_start().await.unwrap_err();
    assert!(matches!(&error, StartError::Exited { status, .. } if status.code() == Some(3)), "{error}");
    assert!(error.to_string().contains("auth.type: no such thing"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_never_ready_says_so() {
    let error = stub("never-ready").ready_within(Duration::from_millis(500)).try_start().await.unwrap_err();
    assert!(matches!(error, StartError::NotReady { .. }), "{error}");
    assert!(error.to_string().contains("503: \"waiting\""), "{error}");
}

#[tokio::test]
#[should_panic(expected = "after SIGTERM the server ended with exit status: 7")]
async fn a_bad_end_is_noticed() {
    stub("ends-badly").start().await.terminate().await;
}

#[tokio::test]
async fn settings_reach_the_server() {
    let muster =
        stub("good").config("a: 1\n").arg("--log-level").arg("debug").env("MUSTER_X", "y").start().await;
    let line = muster.wait_for_log("started", DEADLINE).await;
    assert!(line.contains("--log-level debug") && line.contains("--config "), "{line}");
    assert!(line.contains("config=a: 1") && line.contains("x=y"), "{line}");
}

#[tokio::test]
async fn commands_run_against_the_server() {
    let muster = stub("good").start().await;
    let output = muster.cli(&["say", "hello"]).await.expect_success();
    assert!(output.contains(&format!("hello to {}", muster.http_url())), "{output}");
    let reason = muster.cli(&["fail"]).await.expect_failure();
    assert!(reason.contains("error: cannot"), "{reason}");
    let output = muster.cli_with_input(&["read"], "a text").await.expect_success();
    assert!(output.contains("read a text"), "{output}");
    let output = stub("good").run(&["fail"]).await;
    assert_eq!(output.code, Some(1));
}
