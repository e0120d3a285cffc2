//! docker-compose.yml and the image, against the files and the configuration keys that they are about.
//! Their form is checked by the commands in docs/deployment.md, which CI has no network for.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests end with their panics")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

/// Variables of the program that are no configuration keys.
const PROGRAM_VARIABLES: [&str; 3] = ["MUSTER_CONFIG", "MUSTER_NAME", "MUSTER_ROLES"];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn services() -> Map<String, Value> {
    yaml("docker-compose.yml")["services"].as_object().unwrap().clone()
}

/// The environment of each service of Muster.
fn muster_environments() -> Vec<Map<String, Value>> {
    let services = services();
    let ours = services.values().filter(|service| service["image"].as_str().unwrap().contains("muster:"));
    ours.map(|service| service["environment"].as_object().unwrap().clone()).collect()
}

/// The first column of the table of keys.
fn known_keys() -> BTreeSet<String> {
    let page = read("docs/configuration.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(key, _)| key.to_owned()).collect()
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn the_cluster_is_complete() {
    let roles = |role: &str| {
        let environments = muster_environments();
        let named =
            environments.iter().filter(|environment| environment.get("MUSTER_ROLES") == Some(&role.into()));
        named
            .map(|environment| environment["MUSTER_NAME"].as_str().unwrap().to_owned())
            .collect::<BTreeSet<_>>()
    };
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(roles("gateway"), names(&["gateway-1", "gateway-2", "gateway-3"]));
    assert_eq!(roles("control"), names(&["control-1", "control-2"]));
    assert_eq!(roles("api"), names(&["api-1", "api-2"]));
    let all = services().keys().cloned().collect::<BTreeSet<_>>();
    for engine in ["load-balancer", "migrate", "nats-1", "nats-2", "nats-3", "postgres", "redis"] {
        assert!(all.contains(engine), "{engine} is missing");
    }
}

#[test]
fn nothing_is_published_but_on_loopback() {
    for (name, service) in services() {
        for port in texts(&service["ports"]) {
            assert!(
                port.starts_with("127.0.0.1:"),
                "{name} publishes {port} to others, without authentication"
            );
        }
    }
}

#[test]
fn images_have_versions() {
    for (name, service) in services() {
        let image = service["image"].as_str().unwrap().to_owned();
        let tag = image.rsplit_once(':').map(|(_, tag)| tag.trim_end_matches('}'));
        assert!(tag.is_some_and(|tag| !tag.is_empty() && tag != "latest"), "{name}: {image}");
    }
}

#[test]
fn what_is_mounted_and_built_from_is_there() {
    for (name, service) in services() {
        let mounts = texts(&service["volumes"]).into_iter().filter_map(|mount| mount.split_once(':'));
        let files = mounts.filter(|(source, _)| source.starts_with('.')).map(|(source, _)| source);
        for file in files.chain(service["build"]["dockerfile"].as_str()) {
            assert!(root().join(file).exists(), "{name}: {file} is not there");
        }
    }
    let volumes = yaml("docker-compose.yml")["volumes"].as_object().unwrap().clone();
    for volume in ["nats-1", "nats-2", "nats-3", "postgres"] {
        assert!(volumes.contains_key(volume), "{volume} would be lost with its container");
    }
}

#[test]
fn those_that_are_waited_for_can_become_healthy() {
    let services = services();
    for (name, service) in &services {
        for (other, how) in service["depends_on"].as_object().into_iter().flatten() {
            let awaited = services.get(other).unwrap_or_else(|| panic!("{name} waits for {other}"));
            let checked =
                !awaited["healthcheck"]["test"].is_null() && awaited["healthcheck"]["disable"] != true;
            assert_eq!(how["condition"] == "service_healthy", checked, "{name} waits for {other}");
        }
    }
}

#[test]
fn variables_and_keys_of_muster_are_known() {
    let known = known_keys();
    assert!(known.contains("server.http.endpoint"), "docs/configuration.md has no table of keys");
    for environment in muster_environments() {
        for variable in environment.keys().filter(|name| !PROGRAM_VARIABLES.contains(&name.as_str())) {
            let key = variable.strip_prefix("MUSTER_").map(|rest| rest.to_lowercase().replace("__", "."));
            assert!(key.is_some_and(|key| known.contains(&key)), "{variable} is no key");
        }
    }
    let mut keys = Vec::new();
    leaves(&yaml("deploy/muster.yaml"), "", &mut keys);
    assert!(keys.contains(&"server.allow_insecure".to_owned()));
    for key in keys {
        assert!(known.contains(&key), "deploy/muster.yaml: {key} is no key");
    }
}

fn leaves(value: &Value, path: &str, keys: &mut Vec<String>) {
    let Value::Object(map) = value else { return keys.push(path.to_owned()) };
    for (name, value) in map {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        leaves(value, &path, keys);
    }
}

#[test]
fn engines_get_every_variable_of_their_files() {
    let services = services();
    let files = read("deploy/nats/server.conf") + &read("deploy/nats/nats.conf");
    let variables: BTreeSet<&str> = files
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split_once(": $").map(|(_, variable)| variable.trim()))
        .collect();
    assert!(variables.contains("NATS_ROUTES"), "{variables:?}");
    for name in ["nats-1", "nats-2", "nats-3"] {
        assert_eq!(services[name]["environment"]["NATS_NAME"], name);
        for variable in &variables {
            assert!(!services[name]["environment"][variable].is_null(), "{name} lacks {variable}");
        }
    }
}

#[test]
fn the_load_balancer_knows_every_gateway_and_api() {
    let balancer = read("deploy/haproxy/haproxy.cfg");
    for name in services().keys().filter(|name| name.starts_with("gateway-") || name.starts_with("api-")) {
        assert!(balancer.contains(&format!("-{name}}}:")), "{name} gets no connections");
    }
}

#[test]
fn the_image_is_built_with_our_toolchain() {
    let toolchain = read("rust-toolchain.toml");
    let version =
        toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    let dockerfile = read("deploy/Dockerfile");
    assert!(
        dockerfile.contains(&format!("FROM rust:{version}-slim-bookworm ")),
        "rust-toolchain.toml: {version}"
    );
}
