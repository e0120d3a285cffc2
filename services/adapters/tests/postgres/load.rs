//! How long it takes: commits of many agents, and pages of a large fleet.

use std::time::{Duration, Instant};

use muster_adapters::postgres::PostgresStore;
use muster_domain::agent::Agent;
use muster_domain::desired::matches;
use muster_domain::ids::{Partition, Timestamp};
use muster_domain::report::{ConfigFile, ConfigMap, Description, Health};
use muster_domain::selector::AgentSelector;
use muster_ports::store::{AgentWrite, FleetStore as _, FoldStore as _};
use muster_testkit::engines::Postgres;

use super::{cell, commit, key, keys_in, server, session, store, write};

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    format!("p50 {:?}, p99 {:?}", at(50), at(99))
}

/// An agent whose state has about 3 kB.
fn large_agent(number: usize, key: &muster_domain::ids::AgentKey) -> Agent {
    let mut agent = Agent::new(key.clone(), Timestamp(1_790_000_000_000_000));
    let text = |key: &str, value: String| (key.to_owned(), value.into());
    let identifying = [
        text("service.name", "otelcol".to_owned()),
        text("service.instance.id", key.uid.to_string()),
        text("service.version", "0.130.1".to_owned()),
    ];
    let mut other = vec![text("host.name", format!("host-{number}.eu-west-1.example.com"))];
    other.extend(
        [("os.type", "linux"), ("cloud.region", "eu-west-1")].map(|(key, value)| text(key, value.to_owned())),
    );
    other.extend(
        (0..12).map(|n| text(&format!("k8s.label.example.com/{n}"), format!("value-{n}-{}", number % 50))),
    );
    agent.state.description = Some(Description {
        identifying: identifying.into_iter().collect(),
        non_identifying: other.into_iter().collect(),
    });
    let part = |name: String| {
        (
            name,
            Health {
                healthy: true,
                status: "StatusOK".to_owned(),
                status_time: Some(Timestamp(number as u64)),
                ..Health::default()
            },
        )
    };
    let components = (0..24).map(|n| part(format!("pipeline:traces/receiver:otlp/{n}"))).collect();
    agent.state.health = Some(Health { healthy: true, components, ..Health::default() });
    agent.session = Some(session(number as u128));
    agent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_of_a_thousand_agents() {
    let Some(server) = server().await else { return };
    let url = server.database().await;
    let store = store(url.clone()).await;
    let partition = Partition::new(3).unwrap();
    let keys = keys_in(partition, 1000);
    let mut row = store.partition(&cell(), partition).await.unwrap();
    let agents: Vec<_> = keys.iter().enumerate().map(|(number, key)| large_agent(number, key)).collect();
    let mut times = Vec::new();
    for round in 0..12_u64 {
        let writes = agents.iter().map(|agent| {
            let mut agent = agent.clone();
            agent.state.sequence_num = round;
            let file = ConfigFile { content_type: "text/yaml".to_owned(), body: vec![b'x'; 2000] };
            let config = ConfigMap::from([("collector.yaml".to_owned(), file)]);
            AgentWrite { effective_config: (round == 0).then_some(config), ..write(agent) }
        });
        let writes = writes.collect();
        let began = Instant::now();
        row = store.commit(commit(partition, row, writes)).await.unwrap();
        times.push(began.elapsed());
    }
    let bytes = "SELECT avg(length(state))::int FROM agent_states";
    println!("first commit of 1,000 agents with configs: {:?}", times.remove(0));
    println!(
        "commits of 1,000 agents of {} bytes: {}",
        Postgres::psql(&url, bytes).await,
        percentiles(times)
    );
    let began = Instant::now();
    assert_eq!(store.agents(&cell(), &keys).await.unwrap().len(), 1000);
    println!("reading 1,000 agents by key: {:?}", began.elapsed());
}

/// Fills a database with agents as commits leave them.
async fn fill(url: &str, agents: u32) {
    let rows = format!(
        "INSERT INTO agents SELECT 'default', u.uid, 'here', n % 64, jsonb_build_object('service.name', 'otelcol', \
         'service.instance.id', u.uid, 'service.version', '0.' || n % 20, 'host.name', 'host-' || n, \
         'os.type', CASE n % 3 WHEN 0 THEN 'windows' ELSE 'linux' END, 'region', 'region-' || n % 10, \
         'rack', 'rack-' || n % 1000), u.uid, CASE WHEN n % 100 = 0 THEN jsonb_build_object('team', 'team-' || n % 700) \
         ELSE '{{}}' END \
         FROM generate_series(1, {agents}) AS n, LATERAL (SELECT md5(n::text)::uuid AS uid) AS u; \
         INSERT INTO labels SELECT tenant, uid, 'team', labels ->> 'team', 1 FROM agents WHERE labels ? 'team'; \
         INSERT INTO agent_states SELECT tenant, uid, cell, json_build_object('first_seen', 1, 'last_report', 1, \
         'sequence_num', 1, 'capabilities', 1, 'description', json_build_object('identifying', attributes, \
         'non_identifying', json_build_object('filler', repeat(md5(uid::text), 60)))), true, NULL FROM agents; \
         INSERT INTO sessions SELECT tenant, uid, cell, partition, uid, 1, 'gateway-1', uid, 'websocket', '', 1, NULL, \
         NULL FROM agents"
    );
    Postgres::psql(url, &rows).await;
    Postgres::psql(url, "ANALYZE").await;
}

fn selector(text: &str) -> AgentSelector {
    AgentSelector { requirements: text.parse().unwrap(), ..AgentSelector::default() }
}

/// Reads pages of 50, from the first on; returns how many agents there are and how long pages took.
async fn pages(store: &PostgresStore, selector: &AgentSelector, most: usize) -> (usize, Vec<Duration>) {
    let (mut found, mut after, mut times) = (0, None, Vec::new());
    for _ in 0..most {
        let began = Instant::now();
        let page = store.page(&key(0).tenant, selector, after, 50).await.unwrap();
        times.push(began.elapsed());
        assert!(page.iter().all(|stored| matches(selector, &stored.agent, &stored.labels)));
        found += page.len();
        after = page.last().map(|stored| stored.agent.key.uid);
        if page.len() < 50 {
            after = None;
        }
    }
    (found, times)
}

/// Checks that a selective query is answered by the index: of a large table it reads few rows.
async fn assert_selective(url: &str, condition: &str) {
    let explain = format!(
        "EXPLAIN SELECT a.uid FROM agents AS a WHERE a.tenant = 'default' AND {condition} ORDER BY a.uid LIMIT 50"
    );
    let plan = Postgres::psql(url, &explain).await;
    assert!(plan.contains("Bitmap Index Scan on agents_by_value"), "{condition}\n{plan}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selective_page_is_found_by_the_index() {
    let Some(server) = server().await else { return };
    let url = server.database().await;
    let store = store(url.clone()).await;
    fill(&url, 20_000).await;
    for condition in [
        "(a.attributes || a.labels) @> '{\"host.name\": \"host-77\"}'",
        "(a.attributes || a.labels) @> '{\"team\": \"team-100\"}' AND (a.attributes || a.labels) @> '{\"os.type\": \"linux\"}'",
        "(a.attributes || a.labels) @> ANY('{\"{\\\"host.name\\\": \\\"host-7\\\"}\",\"{\\\"host.name\\\": \\\"host-8\\\"}\"}'::jsonb[])",
    ] {
        assert_selective(&url, condition).await;
    }
    let selective = selector("host.name in (host-77, host-78)");
    assert_eq!(pages(&store, &selective, 1).await.0, 2);
    let scans = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'agents_by_value'";
    let seen = async || {
        let scans = Postgres::psql(&url, scans).await;
        if scans.parse::<u32>().unwrap() > 0 { Ok(()) } else { Err(format!("{scans} scans of the index")) }
    };
    // Counters reach the view when the connection has been idle for a while.
    muster_testkit::eventually(muster_testkit::DEADLINE, seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_a_large_fleet() {
    let Some(server) = server().await else { return };
    let url = server.database().await;
    let store = store(url.clone()).await;
    // The goals are for 100,000; that takes a minute.
    let agents = std::env::var("MUSTER_TEST_AGENTS").map_or(5_000, |agents| agents.parse().unwrap());
    fill(&url, agents).await;
    println!("of {agents} agents, pages of 50:");
    for text in [
        "",
        "host.name=host-777",
        "host.name in (host-1, host-50000, host-99999)",
        "rack=rack-77",
        "rack=rack-77, os.type=linux",
        "team=team-300",
        "region=region-3, service.version='0.3'",
        "os.type=linux",
        "os.type!=linux, region in (region-1, region-2)",
        "team",
        "!team",
        "host.name=nobody",
        "os.type!=linux, os.type!=windows",
        "nothing",
    ] {
        let (found, times) = pages(&store, &selector(text), 100).await;
        println!("{text:50} {found:6} agents in 100 pages: {}", percentiles(times));
    }
    let ids = ["host-name", "01890a5d-ac96-774b-bcce-b302099a8057"].map(str::to_owned);
    let by_id = AgentSelector::new("rack=rack-77".parse().unwrap(), ids).unwrap();
    println!("{:50} {}", "rack=rack-77 or two ids", percentiles(pages(&store, &by_id, 100).await.1));
    let sizes = "SELECT relname, pg_size_pretty(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' \
                 AND relnamespace = 'public'::regnamespace ORDER BY pg_total_relation_size(oid) DESC LIMIT 3";
    println!("{}", Postgres::psql(&url, sizes).await);
}
