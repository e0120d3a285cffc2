//! `muster demo`: a living fleet within seconds.

use muster_testkit::{Muster, eventually};
use serde_json::Value;

use crate::SOON;

#[tokio::test]
async fn the_demo_shows_a_fleet_of_several_kinds() {
    let mut muster = Muster::builder(env!("CARGO_BIN_EXE_muster")).command("demo").start().await;
    let items = eventually(SOON, async || {
        let listed = muster.api().get("/api/v1/agents").await.map_err(|error| error.to_string())?;
        let items = listed["items"].as_array().cloned().unwrap_or_default();
        let count =
            |status: &str| items.iter().filter(|agent| agent["remote_config"]["status"] == status).count();
        let (applied, failed) = (count("APPLIED"), count("FAILED"));
        if items.len() == 25 && applied >= 5 && failed >= 1 {
            Ok(items)
        } else {
            Err(format!("{} agents, {applied} applied, {failed} failed", items.len()))
        }
    })
    .await;
    assert!(items.iter().any(|agent| agent["healthy"] == Value::Bool(false)), "some are unhealthy");
    let names = items.iter().map(|agent| agent["attributes"]["identifying"]["service.name"].to_string());
    assert!(names.collect::<std::collections::BTreeSet<_>>().len() >= 3, "of several kinds");
    let table = muster.cli(&["agents", "list"]).await.expect_success();
    assert_eq!(table.lines().count(), 26, "{table}");
    assert!(muster.stdout().join("\n").contains("muster agents list"), "it says what to try");
    muster.terminate().await;
}
