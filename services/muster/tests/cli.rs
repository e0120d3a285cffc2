//! The client commands against a server that answers what a test says, and as a program.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use clap::Parser;
use muster::cli::{self, ClientCommand, GlobalOptions};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const UID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    options: GlobalOptions,
    #[command(subcommand)]
    command: ClientCommand,
}

/// A request as the server saw it.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    method: String,
    /// With the query.
    path: String,
    content_type: String,
    authorization: String,
    body: String,
}

/// A server that gives one answer after another.
struct Stub {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Stub {
    async fn start(answers: impl IntoIterator<Item = (u16, String)>) -> Self {
        let answers: Arc<Mutex<VecDeque<_>>> = Arc::new(Mutex::new(answers.into_iter().collect()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let seen_by_server = seen.clone();
        let serve = async move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| -> Response {
            let header =
                |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
            seen_by_server.lock().unwrap().push(Seen {
                method: method.to_string(),
                path: uri.to_string(),
                content_type: header("content-type"),
                authorization: header("authorization"),
                body: String::from_utf8(body.to_vec()).unwrap(),
            });
            let answer = answers.lock().unwrap().pop_front();
            match answer {
                Some((0, _)) => std::future::pending().await,
                Some((status, body)) => (StatusCode::from_u16(status).unwrap(), body).into_response(),
                None => (StatusCode::IM_A_TEAPOT, "no answer is left").into_response(),
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(serve);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, seen }
    }

    async fn answering(answer: Value) -> Self {
        Self::start([(200, answer.to_string())]).await
    }

    async fn refusing(status: u16, problem: Value) -> Self {
        Self::start([(status, problem.to_string())]).await
    }

    /// What the command prints, or what it says on standard error.
    async fn run(&self, arguments: &[&str]) -> Result<String, String> {
        run(&[&["--server", &self.url], arguments].concat()).await
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn paths(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect()
    }
}

async fn run(arguments: &[&str]) -> Result<String, String> {
    let program =
        Program::try_parse_from([&["muster"], arguments].concat()).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    cli::execute(program.command, &program.options, &mut out).await.map_err(|error| error.report())?;
    Ok(String::from_utf8(out).unwrap())
}

fn ago(seconds: i64) -> String {
    (OffsetDateTime::now_utc() - time::Duration::seconds(seconds)).format(&Rfc3339).unwrap()
}

fn mk_agent(uid: &str, name: &str) -> Value {
    json!({
        "instance_uid": uid, "connected": true, "healthy": false, "status": "StatusRecoverableError",
        "last_seen": ago(330), "first_seen": ago(200_000),
        "attributes": {
            "identifying": {"service.name": name, "service.version": "0.98.0"},
            "non_identifying": {"os.type": "linux", "cpus": 4, "tags": ["a", "b"]}
        },
        "labels": {"env": "prod"}, "capabilities": ["ReportsStatus", "AcceptsRemoteConfig"], "sequence_num": 7,
        "remote_config": {
            "desired_hash": "abcd", "reported_hash": "abcd", "status": "FAILED", "error_message": "no such receiver",
            "failed_hash": "abcd", "held": null
        },
        "health": {
            "healthy": false, "status": "StatusRecoverableError", "last_error": "", "start_time": ago(7200),
            "status_time": null, "attributes": {}, "components": {
                "pipeline:traces": {
                    "healthy": false, "status": "", "last_error": "refused", "start_time": null, "status_time": null,
                    "attributes": {}, "components": {}
                }
            }
        },
        "custom_capabilities": [],
        "session": {
            "id": UID, "gateway": "gw-1", "transport": "websocket", "remote_addr": "10.0.0.1:5555",
            "started_at": ago(4000), "ended_at": null, "end_reason": null
        }
    })
}

#[tokio::test]
async fn agents_are_listed_in_columns() {
    let mut second = mk_agent("01890a5d-0000-774b-bcce-b302099a8057", "a\u{1b}[2J");
    second["healthy"] = Value::Null;
    second["connected"] = json!(false);
    second["remote_config"]["status"] = json!("UNSET");
    second["last_seen"] = Value::Null;
    second["attributes"]["identifying"]["service.version"] = json!(2);
    let mut third = second.clone();
    third["remote_config"]["held"] = json!("attribute host.name is missing");
    third["attributes"] = json!({});
    let page = json!({"items": [mk_agent(UID, "otelcol"), second, third], "next_cursor": null});
    let stub = Stub::answering(page).await;
    assert_eq!(
        stub.run(&["agents", "list", "--selector", "env=prod,os.type in (linux)"]).await.unwrap(),
        "\
INSTANCE_UID                           NAME         VERSION   CONNECTED   HEALTHY   CONFIG   LAST SEEN
01890a5d-ac96-774b-bcce-b302099a8057   otelcol      0.98.0    yes         no        FAILED   5m
01890a5d-0000-774b-bcce-b302099a8057   a\\u{1b}[2J   2         no          -         -        -
01890a5d-0000-774b-bcce-b302099a8057   -            -         no          -         HELD     -
"
    );
    assert_eq!(stub.paths(), ["GET /api/v1/agents?selector=env%3Dprod%2Cos.type+in+%28linux%29&limit=1000"]);
}

#[tokio::test]
async fn pages_are_followed_to_the_end_or_the_limit() {
    let page = |uids: &[u8], cursor: Value| {
        let items: Vec<_> = uids.iter().map(|uid| json!({"instance_uid": uid.to_string()})).collect();
        (200, json!({"items": items, "next_cursor": cursor}).to_string())
    };
    let stub =
        Stub::start([page(&[1, 2], json!("b c")), page(&[3], json!("d")), page(&[], json!(null))]).await;
    let all: Value =
        serde_json::from_str(&stub.run(&["agents", "list", "-o", "json"]).await.unwrap()).unwrap();
    let items = json!([{"instance_uid": "1"}, {"instance_uid": "2"}, {"instance_uid": "3"}]);
    assert_eq!(all, json!({"items": items, "next_cursor": null}));
    assert_eq!(
        stub.paths(),
        [
            "GET /api/v1/agents?limit=1000",
            "GET /api/v1/agents?limit=1000&cursor=b+c",
            "GET /api/v1/agents?limit=1000&cursor=d"
        ]
    );

    let stub = Stub::start([page(&[1, 2], json!("b")), page(&[3], json!("d"))]).await;
    stub.run(&["agents", "list", "--limit", "3"]).await.unwrap();
    assert_eq!(stub.paths(), ["GET /api/v1/agents?limit=3", "GET /api/v1/agents?limit=1&cursor=b"]);

    let stub = Stub::start([page(&[1], json!("b")), page(&[1], json!("b"))]).await;
    let error = stub.run(&["agents", "list"]).await.unwrap_err();
    assert!(error.contains("it repeats a page"), "{error}");
}

#[tokio::test]
async fn an_agent_is_a_page() {
    let mut agent = mk_agent(UID, "otelcol");
    agent["effective_config"] = json!({
        "": {"body": "receivers:\n  otlp:\n\u{1b}]0;x\u{7}\n", "content_type": "text/yaml"},
        "bin": {"body": "AAEC", "content_type": "application/x", "encoding": "base64"}
    });
    for (field, value) in [("last_seen", "2026-01-01T00:00:00Z"), ("first_seen", "2025-01-01T00:00:00Z")] {
        agent[field] = json!(value);
    }
    let stub = Stub::answering(agent).await;
    let page = stub.run(&["agents", "get", "01890A5DAC96774BBCCEB302099A8057"]).await.unwrap();
    let expected = "\
Agent
  instance_uid   01890a5d-ac96-774b-bcce-b302099a8057
  name           otelcol
  version        0.98.0
  connected      yes
  healthy        no
  status         StatusRecoverableError
  last seen      2026-01-01T00:00:00Z (Nd ago)
  first seen     2025-01-01T00:00:00Z (Nd ago)

Labels
  env   prod

Identifying attributes
  service.name      otelcol
  service.version   0.98.0

Other attributes
  cpus      4
  os.type   linux
  tags      [\"a\",\"b\"]

Session
  connection   websocket from 10.0.0.1:5555
  gateway      gw-1
  started      STARTED (1h ago)

Capabilities
  ReportsStatus
  AcceptsRemoteConfig

Remote config
  status     FAILED
  error      no such receiver
  desired    abcd
  reported   abcd
  failed     abcd

Health
  COMPONENT           HEALTHY   STATUS                   SINCE   UP   LAST ERROR   ATTRIBUTES
  agent               no        StatusRecoverableError   -       2h
    pipeline:traces   no        -                        -       -    refused

Effective config: (no name) (text/yaml)
  receivers:
    otlp:
  \\u{1b}]0;x\\u{7}

Effective config: bin (base64)
  AAEC
";
    // What depends on the time of the test.
    let steady = |line: &str| match line.split_whitespace().next() {
        Some("last" | "first") => {
            let (before, _) = line.split_once('(').unwrap();
            assert!(line.ends_with("d ago)"), "{line}");
            format!("{before}(Nd ago)")
        }
        Some("started") => {
            let (_, age) = line.split_once('(').unwrap();
            format!("  started      STARTED ({age}")
        }
        _ => line.to_owned(),
    };
    let page: Vec<_> = page.lines().map(steady).collect();
    assert_eq!(page.join("\n") + "\n", expected);
    assert_eq!(stub.paths(), [format!("GET /api/v1/agents/{UID}")]);
}

#[tokio::test]
async fn labels_are_patched_and_printed() {
    let stub = Stub::answering(json!({"labels": {"env": "prod", "team": ""}})).await;
    let printed = stub.run(&["agents", "label", UID, "env=prod", "old-", "--token", "t0"]).await.unwrap();
    assert_eq!(printed, "KEY    VALUE\nenv    prod\nteam\n");
    assert_eq!(
        stub.seen(),
        [Seen {
            method: "PATCH".to_owned(),
            path: format!("/api/v1/agents/{UID}/labels"),
            content_type: "application/merge-patch+json".to_owned(),
            authorization: "Bearer t0".to_owned(),
            body: "{\"env\":\"prod\",\"old\":null}".to_owned(),
        }]
    );
}

#[tokio::test]
async fn json_and_yaml_are_what_the_api_says() {
    let answer = json!({
        "name": "a", "zeta": 1, "alpha": [1.0, null, true, {"k": []}, {}],
        "texts": ["yes", "1.0", "null", "", " x", "a: b", "- a", "# c", "line\nline\n", "\u{1b}", "é日本", "0x1F", "~", "'q'"],
        "max": u64::MAX
    });
    let stub = Stub::start([(200, answer.to_string()), (200, answer.to_string())]).await;
    let json = stub.run(&["configs", "get", "a", "-o", "json"]).await.unwrap();
    assert_eq!(json, format!("{answer:#}\n"));
    let yaml = stub.run(&["configs", "get", "a", "--output=yaml"]).await.unwrap();
    assert!(yaml.starts_with("name: a\nzeta: 1\nalpha:\n"), "{yaml}");
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), answer, "{yaml}");
}

#[tokio::test]
async fn templates_and_assignments_are_shown() {
    let stub = Stub::start([
        (
            200,
            json!({"items": [{"name": "standard", "versions": ["v1", "v2"], "latest": "v2", "created_at": ago(60)}]})
                .to_string(),
        ),
        (
            200,
            json!({
                "name": "standard", "version": "v2", "versions": ["v1", "v2"], "id": "i", "digest": "d",
                "created_at": null, "source": "kind: ConfigTemplate\nspec:\n  x: 1\n",
                "variables": [
                    {"name": "rate", "type": "float", "required": false, "default": 1.0, "min": 0.5, "used": true},
                    {"name": "env", "type": "string", "required": true, "enum": ["dev", "prod"], "used": true}
                ]
            })
            .to_string(),
        ),
        (
            200,
            json!({"items": [{
                "name": "prod", "template": {"name": "standard", "version": null, "resolved_version": "v2"}, "values": {},
                "selector": {}, "selector_text": "env=prod", "priority": 5, "file": null, "created_at": ago(3600),
                "updated_at": null
            }]})
            .to_string(),
        ),
        (
            200,
            json!({
                "name": "prod", "template": {"name": "standard", "version": "v1", "resolved_version": "v1"},
                "values": {"rate": 0.5, "env": "prod"}, "selector": {}, "selector_text": "", "priority": 0,
                "file": "otel.yaml", "created_at": null, "updated_at": null, "matched_agents": 3
            })
            .to_string(),
        ),
    ])
    .await;
    assert_eq!(
        stub.run(&["configs", "list"]).await.unwrap(),
        "NAME       LATEST   VERSIONS   AGE\nstandard   v2       2          1m\n"
    );
    assert_eq!(
        stub.run(&["configs", "get", "standard", "--version", "v2"]).await.unwrap(),
        "\
Template
  name       standard
  version    v2
  versions   v1, v2
  id         i
  digest     d

Variables
  NAME   TYPE     REQUIRED   DEFAULT   ONE OF      MIN   MAX
  rate   float    no         1.0       -           0.5   -
  env    string   yes        -         dev, prod   -     -

Manifest
  kind: ConfigTemplate
  spec:
    x: 1
"
    );
    assert_eq!(
        stub.run(&["assignments", "list"]).await.unwrap(),
        "NAME   TEMPLATE   VERSION       SELECTOR   PRIORITY   AGE\n\
         prod   standard   v2 (latest)   env=prod   5          1h\n"
    );
    assert_eq!(
        stub.run(&["assignments", "get", "prod"]).await.unwrap(),
        "\
Assignment
  name             prod
  template         standard
  version          v1
  selector         -
  priority         0
  file             otel.yaml
  matched agents   3

Values
  env    prod
  rate   0.5
"
    );
    assert_eq!(
        stub.paths(),
        [
            "GET /api/v1/configs",
            "GET /api/v1/configs/standard?version=v2",
            "GET /api/v1/assignments",
            "GET /api/v1/assignments/prod"
        ]
    );
}

fn mk_files(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    let paths = files.iter().map(|(name, text)| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let paths = paths.collect();
    (directory, paths)
}

#[tokio::test]
async fn files_are_applied_in_one_request() {
    let (_directory, files) = mk_files(&[("a.yaml", "a: 1\n---\nb: 2\n"), ("b.yaml", "---\nc: 3")]);
    let results = json!({"revision": 4, "results": [
        {"kind": "ConfigTemplate", "name": "standard-collector", "version": "v1.0.0", "action": "created"},
        {"kind": "ConfigAssignment", "name": "prod", "action": "unchanged"}
    ]});
    let stub = Stub::answering(results).await;
    assert_eq!(
        stub.run(&["apply", "-f", &files[0], "-f", &files[1]]).await.unwrap(),
        "configtemplate/standard-collector v1.0.0 created\nconfigassignment/prod unchanged\n"
    );
    let seen = stub.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("POST", "/api/v1/apply"));
    assert_eq!(seen[0].content_type, "application/yaml");
    assert_eq!(seen[0].authorization, "");
    assert_eq!(seen[0].body, "a: 1\n---\nb: 2\n\n...\n---\nc: 3");
}

#[tokio::test]
async fn what_is_wrong_with_manifests_is_told_by_file_and_line() {
    let (_directory, files) = mk_files(&[("a.yaml", "a: 1\nb: 2\n"), ("b.yaml", "c: 3\n---\nd: 4\n")]);
    let problem = json!({
        "type": "about:blank", "title": "Unprocessable Entity", "status": 422,
        "detail": "nothing was applied: mend the manifests and apply them again",
        "errors": [
            {"line": 2, "column": 4, "field": "spec.b", "message": "must be text"},
            {"line": 7, "column": 1, "field": "", "message": "unknown kind"}
        ]
    });
    let stub = Stub::refusing(422, problem).await;
    assert_eq!(
        stub.run(&["apply", "-f", &files[0], "-f", &files[1]]).await.unwrap_err(),
        format!(
            "{}: line 2, column 4: spec.b: must be text\n{}: line 3, column 1: unknown kind\n\
             muster: nothing was applied: mend the manifests and apply them again",
            files[0], files[1]
        )
    );
}

#[tokio::test]
async fn files_that_are_no_manifests_are_not_sent() {
    let (directory, files) =
        mk_files(&[("good.yaml", "a: 1\n"), ("bad.yaml", "a: [1\n"), ("empty.yaml", "# none\n")]);
    let stub = Stub::start([]).await;
    let error = stub.run(&["apply", "-f", &files[0], "-f", &files[1], "-f", &files[2]]).await.unwrap_err();
    let lines: Vec<_> = error.lines().collect();
    assert!(lines[0].starts_with(&format!("{}: line ", files[1])), "{error}");
    assert_eq!(lines[1], format!("{}: there is no manifest in it", files[2]));
    assert_eq!(lines[2], "muster: nothing was applied: mend the files and apply them again");
    let missing = directory.path().join("missing.yaml").display().to_string();
    let error = stub.run(&["apply", "-f", &missing]).await.unwrap_err();
    assert!(error.starts_with(&format!("muster: cannot read {missing}: ")), "{error}");
    let error = stub.run(&["apply", "-f", "-", "-f", "-"]).await.unwrap_err();
    assert_eq!(error, "muster: -f -: standard input can be read once");
    assert_eq!(stub.seen(), []);
}

#[tokio::test]
async fn a_refusal_is_told_in_the_server_s_words() {
    let problem =
        json!({"type": "about:blank", "title": "Not Found", "status": 404, "detail": "there is no agent x"});
    let stub = Stub::refusing(404, problem).await;
    assert_eq!(stub.run(&["agents", "get", UID]).await.unwrap_err(), "muster: there is no agent x");
    let stub = Stub::refusing(500, json!({"title": "Internal Server Error"})).await;
    assert_eq!(stub.run(&["agents", "get", UID]).await.unwrap_err(), "muster: Internal Server Error");
}

#[tokio::test]
async fn what_is_not_muster_is_told() {
    let cases = [
        ((404, "<html>".to_owned()), "it answers 404 Not Found"),
        ((301, String::new()), "it answers 301 Moved Permanently"),
        ((200, "<html>".to_owned()), "its answer is not JSON"),
        ((200, "{}".to_owned()), "its answer is not a list"),
        ((200, "{\"items\":[{\"connected\":5}]}".to_owned()), "its answer is not understood"),
    ];
    for (answer, expected) in cases {
        let stub = Stub::start([answer]).await;
        let error = stub.run(&["agents", "list"]).await.unwrap_err();
        let beginning = format!(
            "muster: what answers at {} is not Muster, or another version of it: {expected}",
            stub.url
        );
        assert!(error.starts_with(&beginning), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    assert_eq!(
        run(&["--server", &url, "agents", "list"]).await.unwrap_err(),
        format!(
            "muster: cannot reach Muster at {url}: is `muster serve` running? (--server, MUSTER_SERVER_URL)"
        )
    );
    let error =
        run(&["agents", "list", "--server", "http://u:hunter2@no-such-host.invalid"]).await.unwrap_err();
    assert!(error.starts_with("muster: cannot reach Muster at http://no-such-host.invalid: "), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_silent_is_given_up() {
    let stub = Stub::start([(0, String::new())]).await;
    assert_eq!(
        stub.run(&["agents", "list", "--timeout", "50ms"]).await.unwrap_err(),
        format!("muster: no answer from Muster at {} within 50ms (--timeout)", stub.url)
    );
}

#[tokio::test]
async fn the_server_may_be_under_a_path() {
    let stub = Stub::answering(json!({"items": []})).await;
    let url = format!("{}/muster/?x=1#y", stub.url);
    run(&["--server", &url, "--token", "", "configs", "list"]).await.unwrap();
    assert_eq!(stub.paths(), ["GET /muster/api/v1/configs"]);
    assert_eq!(stub.seen()[0].authorization, "");
}

#[tokio::test]
async fn arguments_that_are_not_well_formed_are_not_sent() {
    let cases: [(&[&str], &str); 8] = [
        (&["agents", "get", "agent-001"], "instance_uid \"agent-001\" is not a UUID"),
        (&["agents", "label", UID, "env"], "\"env\" is not a change of labels"),
        (&["configs", "get", ".."], "a name must not be empty, `.` or `..`"),
        (&["configs", "get", ""], "a name must not be empty, `.` or `..`"),
        (&["agents", "list", "--limit", "0"], "invalid value '0'"),
        (&["agents", "list", "--timeout", "10"], "must be a duration such as 250ms, 30s or 5m"),
        (&["agents", "list", "--token", "a\nb"], "--token (MUSTER_TOKEN) has characters that no token has"),
        (&["agents", "list", "-o", "xml"], "invalid value 'xml'"),
    ];
    let stub = Stub::start([]).await;
    for (arguments, expected) in cases {
        let error = stub.run(arguments).await.unwrap_err();
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    for server in ["localhost:4321", "ftp://a", "http://", "hunter2"] {
        let error = run(&["--server", server, "agents", "list"]).await.unwrap_err();
        assert_eq!(
            error,
            "muster: --server (MUSTER_SERVER_URL) is not an address such as http://127.0.0.1:4321"
        );
    }
    assert_eq!(stub.seen(), []);
}

#[test]
fn a_token_is_not_shown() {
    let arguments = ["muster", "--token", "hunter2", "agents", "list"];
    let program = Program::try_parse_from(arguments).unwrap();
    assert!(!format!("{program:?}").contains("hunter2"));
}

/// The program itself, with an environment of its own.
fn program(stub: &Stub) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.env_remove("MUSTER_TOKEN").env("MUSTER_SERVER_URL", &stub.url);
    command
}

async fn finish(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn the_program_says_by_its_exit_code_whether_it_worked() {
    let stub = Stub::start([
        (200, json!({"items": []}).to_string()),
        (404, json!({"detail": "there is no assignment \"x\u{1b}\""}).to_string()),
    ])
    .await;
    let mut good = program(&stub);
    good.args(["assignments", "list"]);
    let good = finish(good).await;
    assert_eq!(good.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(good.stdout).unwrap(),
        "NAME   TEMPLATE   VERSION   SELECTOR   PRIORITY   AGE\n"
    );
    assert_eq!(good.stderr, b"");
    let mut bad = program(&stub);
    bad.args(["assignments", "get", "x"]);
    let bad = finish(bad).await;
    assert_eq!(bad.status.code(), Some(1));
    assert_eq!(bad.stdout, b"");
    assert_eq!(String::from_utf8(bad.stderr).unwrap(), "muster: there is no assignment \"x\\u{1b}\"\n");
}

#[tokio::test]
async fn the_program_applies_standard_input() {
    let stub =
        Stub::refusing(422, json!({"detail": "no", "errors": [{"line": 2, "column": 1, "message": "bad"}]}))
            .await;
    let mut command = program(&stub);
    command.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"a: 1\nb: 2\n").unwrap();
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "stdin: line 2, column 1: bad\nmuster: no\n");
    assert_eq!(stub.seen()[0].body, "a: 1\nb: 2\n");
}

#[tokio::test]
async fn the_program_ends_quietly_when_nobody_reads_on() {
    // More than a pipe holds.
    let items: Vec<_> = (0..3000).map(|at| mk_agent(UID, &format!("agent-{at}"))).collect();
    let stub = Stub::answering(json!({"items": items, "next_cursor": null})).await;
    let mut command = program(&stub);
    command.args(["agents", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (status, errors) = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let mut some = [0; 10];
        child.stdout.take().unwrap().read_exact(&mut some).unwrap();
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (child.wait().unwrap(), errors)
    })
    .await
    .unwrap();
    assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn an_interrupt_ends_the_program_quietly() {
    let stub = Stub::start([(0, String::new())]).await;
    let mut command = program(&stub);
    command.args(["agents", "list", "--timeout", "1m"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    while stub.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert!(!output.status.success());
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b""[..], &b""[..]));
}
