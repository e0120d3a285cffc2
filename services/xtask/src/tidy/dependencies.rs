//! The dependency table of the design, against what Cargo resolves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::{Context, Result};
use cargo_metadata::camino::Utf8Path;
use cargo_metadata::{DependencyKind, Metadata};

use super::{Finding, Text};

/// What a crate of the workspace may depend on.
struct Rule {
    name: &'static str,
    /// Where this is given, its direct dependencies are all among these.
    only: Option<Names>,
    /// Families of crates (`tokio` is `tokio-util` too) that it reaches by no chain of dependencies.
    never: &'static [Names],
}

type Names = &'static [&'static str];

const DRIVERS: Names = &["async-nats", "redis", "sqlx"];
const ADAPTERS: Names = &["muster-adapters"];
const ROLES: Names = &["muster-gateway", "muster-control", "muster-api"];
const RUNTIME: Names = &["tokio", "futures", "axum"];

#[rustfmt::skip] // A table: one crate a row.
const RULES: &[Rule] = &[
    only("muster-proto", &["bytes", "prost"], &[RUNTIME, DRIVERS]),
    only("muster-domain", &["hex", "saphyr-parser", "serde", "serde_json", "sha2", "thiserror", "uuid"],
        &[RUNTIME, DRIVERS, &["prost", "tracing"]]),
    only("muster-opamp", &["bytes", "muster-domain", "muster-proto", "thiserror", "uuid"], &[RUNTIME, DRIVERS]),
    only("muster-ports", &["async-trait", "bytes", "muster-domain", "muster-proto", "serde", "serde_json", "thiserror",
        "uuid"], &[DRIVERS]),
    only("muster-adapters-memory", &["async-trait", "bytes", "futures-util", "muster-domain", "muster-ports",
        "muster-proto", "serde", "serde_json", "thiserror", "tokio", "tracing", "uuid"], &[DRIVERS, ROLES]),
    any("muster-tls", &[DRIVERS, ADAPTERS, ROLES]),
    any("muster-adapters", &[ROLES]),
    any("muster-auth", &[DRIVERS, ADAPTERS, ROLES]),
    any("muster-gateway", &[DRIVERS, ADAPTERS, &["muster-control", "muster-api"]]),
    any("muster-control", &[DRIVERS, ADAPTERS, &["muster-gateway", "muster-api", "muster-opamp"]]),
    any("muster-api", &[DRIVERS, ADAPTERS, &["muster-gateway", "muster-control", "muster-opamp"]]),
    any("muster", &[]),
    any("muster-sim", &[DRIVERS]),
    any("muster-fuzzing", &[DRIVERS, ADAPTERS]),
    any("muster-fleet", &[ADAPTERS, ROLES]),
    any("muster-testkit", &[ADAPTERS, ROLES]),
    any("muster-loadtest", &[ADAPTERS, ROLES]),
    any("muster-swarm", &[ADAPTERS, ROLES]),
    any("muster-cluster", &[ADAPTERS, ROLES]),
    any("muster-cluster", &[ADAPTERS, ROLES]),
    any("xtask", &[ADAPTERS, ROLES]),
];

const fn only(name: &'static str, only: Names, never: &'static [Names]) -> Rule {
    Rule { name, only: Some(only), never }
}

const fn any(name: &'static str, never: &'static [Names]) -> Rule {
    Rule { name, only: None, never }
}

impl Rule {
    fn forbids(&self, name: &str) -> bool {
        self.never.iter().any(|names| is_of(names, name))
    }
}

/// Whether the crate is one of these or of the family of one.
fn is_of(families: Names, name: &str) -> bool {
    families
        .iter()
        .any(|family| name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
}

/// The workspace as Cargo sees it.
pub(super) struct Workspace {
    members: Vec<Member>,
    graph: Graph,
}

struct Member {
    id: String,
    name: String,
    manifest: Text,
    /// Name and kind of every direct dependency.
    direct: Vec<(String, DependencyKind)>,
    /// The files where the compiler starts.
    roots: Vec<String>,
}

/// The resolved normal dependencies: package id to name and ids.
type Graph = BTreeMap<String, (String, Vec<String>)>;

impl Workspace {
    pub(super) fn read(metadata: &Metadata) -> Result<Self> {
        let relative =
            |path: &Utf8Path| path.strip_prefix(&metadata.workspace_root).unwrap_or(path).to_string();
        let mut members = Vec::new();
        for package in metadata.workspace_packages() {
            let text = std::fs::read_to_string(&package.manifest_path)
                .with_context(|| format!("cannot read {}", package.manifest_path))?;
            members.push(Member {
                id: package.id.repr.clone(),
                name: package.name.to_string(),
                manifest: Text { path: relative(&package.manifest_path), text },
                direct: package.dependencies.iter().map(|on| (on.name.clone(), on.kind)).collect(),
                roots: package.targets.iter().map(|target| relative(&target.src_path)).collect(),
            });
        }
        let names: BTreeMap<_, _> =
            metadata.packages.iter().map(|package| (&package.id, package.name.to_string())).collect();
        let resolve = metadata.resolve.as_ref().context("cargo metadata resolved nothing")?;
        let mut graph = Graph::new();
        for node in &resolve.nodes {
            let normal = node
                .deps
                .iter()
                .filter(|edge| edge.dep_kinds.iter().any(|info| info.kind == DependencyKind::Normal));
            let edges = normal.map(|edge| edge.pkg.repr.clone()).collect();
            graph.insert(node.id.repr.clone(), (names.get(&node.id).cloned().unwrap_or_default(), edges));
        }
        Ok(Workspace { members, graph })
    }

    pub(super) fn manifests(&self) -> impl Iterator<Item = &Text> {
        self.members.iter().map(|member| &member.manifest)
    }

    pub(super) fn roots(&self) -> Vec<String> {
        self.members.iter().flat_map(|member| member.roots.iter().cloned()).collect()
    }

    pub(super) fn check(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for member in &self.members {
            if let Some(rule) = RULES.iter().find(|rule| rule.name == member.name) {
                findings.extend(check_direct(rule, member));
                findings.extend(check_reach(rule, member, &self.graph));
            } else {
                let what = format!("{} is not in the dependency table", member.name);
                let mend = "add a row for it to the table in the design and to RULES in `xtask`, tidy/dependencies.rs";
                findings.push(Finding::new(&member.manifest.path, 1, what, mend));
            }
        }
        findings
    }
}

fn check_direct(rule: &Rule, member: &Member) -> Vec<Finding> {
    let wrong = |(name, kind): &&(String, DependencyKind)| match (kind, rule.only) {
        (DependencyKind::Normal, only) => {
            rule.forbids(name) || only.is_some_and(|only| !only.contains(&name.as_str()))
        }
        // Tests may use more, but a crate that is pure by its list is tested without engines.
        (DependencyKind::Development, Some(_)) => is_of(DRIVERS, name),
        _ => false,
    };
    let finding = |(name, _): &(String, DependencyKind)| {
        let what = format!("{} may not depend on {name}", member.name);
        let mend = "move what needs it to a crate that may, or change the dependency table with a record in docs/decisions";
        Finding::new(&member.manifest.path, line_of(&member.manifest.text, name), what, mend)
    };
    member.direct.iter().filter(wrong).map(finding).collect()
}

/// One finding for each forbidden crate that is reached through others, with the shortest chain to it.
fn check_reach(rule: &Rule, member: &Member, graph: &Graph) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::from([member.id.as_str()]);
    let mut waiting = VecDeque::from([(member.id.as_str(), Vec::<&str>::new())]);
    while let Some((id, above)) = waiting.pop_front() {
        let Some((name, edges)) = graph.get(id) else { continue };
        let chain = [above.as_slice(), &[name.as_str()]].concat();
        if chain.len() > 1 && rule.forbids(name) {
            // Directly on it: check_direct says so.
            if chain.len() > 2 {
                let what = format!("{} may not reach {name}: {}", member.name, chain.join(" -> "));
                let line = line_of(&member.manifest.text, chain[1]);
                let mend = format!("drop {} or the feature of it that needs {name}", chain[1]);
                findings.push(Finding::new(&member.manifest.path, line, what, mend));
            }
            continue;
        }
        let next = edges.iter().map(String::as_str).filter(|next| seen.insert(next));
        waiting.extend(next.map(|next| (next, chain.clone())));
    }
    findings
}

/// The first line of the manifest that sets this key.
fn line_of(manifest: &str, key: &str) -> usize {
    let sets = |line: &str| {
        line.trim_start().strip_prefix(key).is_some_and(|rest| rest.starts_with([' ', '.', '=']))
    };
    manifest.lines().position(sets).map_or(1, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::text;

    /// A workspace of one crate, with the given dependencies, and a resolved graph given as "a: b c".
    fn found(name: &str, direct: &[(&str, DependencyKind)], edges: &[&str]) -> Vec<String> {
        let manifest = format!("[package]\nname = \"{name}\"\n[dependencies]\nsqlx.workspace = true\n");
        let member = Member {
            id: name.to_owned(),
            name: name.to_owned(),
            manifest: text("x/Cargo.toml", &manifest),
            direct: direct.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect(),
            roots: Vec::new(),
        };
        let node = |line: &&str| {
            let (id, on) = line.split_once(':').unwrap();
            (id.to_owned(), (id.to_owned(), on.split_whitespace().map(str::to_owned).collect()))
        };
        let workspace = Workspace { members: vec![member], graph: edges.iter().map(node).collect() };
        workspace.check().iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
    }

    use DependencyKind::{Development, Normal};

    #[test]
    fn a_pure_crate_uses_only_what_is_listed() {
        assert_eq!(found("muster-domain", &[("serde", Normal), ("proptest", Development)], &[]), [""; 0]);
        let refused = found("muster-domain", &[("rand", Normal), ("sqlx", Development)], &[]);
        assert_eq!(
            refused,
            ["1: muster-domain may not depend on rand", "4: muster-domain may not depend on sqlx"]
        );
    }

    #[test]
    fn a_role_uses_neither_drivers_nor_adapters_nor_another_role() {
        assert_eq!(
            found("muster-api", &[("axum", Normal), ("muster-adapters-memory", Development)], &[]),
            [""; 0]
        );
        for name in ["sqlx", "muster-adapters", "muster-adapters-memory", "muster-gateway", "muster-opamp"] {
            assert_eq!(found("muster-api", &[(name, Normal)], &[]).len(), 1, "{name}");
        }
        assert_eq!(found("muster-gateway", &[("muster-opamp", Normal)], &[]), [""; 0]);
    }

    #[test]
    fn a_forbidden_crate_behind_an_allowed_one_is_found() {
        let edges = [
            "muster-domain: serde uuid",
            "serde: b",
            "uuid:",
            "b: tokio-util",
            "tokio-util: tokio",
            "tokio:",
        ];
        assert_eq!(
            found("muster-domain", &[("serde", Normal)], &edges),
            ["1: muster-domain may not reach tokio-util: muster-domain -> serde -> b -> tokio-util"]
        );
        assert_eq!(
            found("muster-domain", &[], &["muster-domain: serde", "serde: tokiometer", "tokiometer:"]),
            [""; 0]
        );
    }

    #[test]
    fn a_crate_outside_the_table_is_found() {
        assert_eq!(found("muster-new", &[], &[]), ["1: muster-new is not in the dependency table"]);
    }
}
