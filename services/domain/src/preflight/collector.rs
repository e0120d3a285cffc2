//! Configs of OpenTelemetry Collectors.

use std::collections::BTreeMap;

use super::{Checked, Finding, Need, Severity};
use crate::yaml::{Node, Span, did_you_mean};

/// Sections of components.
const SECTIONS: [&str; 5] = ["receivers", "processors", "exporters", "connectors", "extensions"];
/// Kinds of pipelines.
const SIGNALS: [&str; 4] = ["traces", "metrics", "logs", "profiles"];

/// Whether a file looks like a config of a collector, or a part of one.
pub(super) fn is_one(tree: &Node) -> bool {
    tree.get("service").is_some_and(|service| service.as_mapping().is_some())
        || SECTIONS[..4]
            .iter()
            .any(|section| tree.get(section).is_some_and(|found| found.as_mapping().is_some()))
}

/// Components by section and id, with their file, as the agent merges the files.
#[derive(Default)]
struct Merged<'a> {
    components: BTreeMap<&'static str, BTreeMap<&'a str, (&'a str, &'a Node, Span)>>,
    /// Pipelines by id: the lists of the last file that has them.
    pipelines: BTreeMap<&'a str, BTreeMap<&'a str, (&'a str, &'a Node)>>,
    places: BTreeMap<&'a str, (&'a str, Span)>,
    extensions: Option<(&'a str, &'a Node)>,
}

/// Checks the files of one config together.
pub(super) fn check(trees: &[(&str, Node)], checked: &mut Checked) {
    let mut merged = Merged::default();
    for (file, tree) in trees {
        merged.add(file, tree, checked);
    }
    merged.check(checked);
}

impl<'a> Merged<'a> {
    fn add(&mut self, file: &'a str, tree: &'a Node, checked: &mut Checked) {
        for section in SECTIONS {
            let Some(node) = tree.get(section).filter(|node| !node.is_null()) else { continue };
            let Some(entries) = node.as_mapping() else {
                let what = format!("{section}: must be a mapping, this is {}", node.kind());
                push(checked, Severity::Error, file, Some(node.span), what);
                continue;
            };
            let known = self.components.entry(section).or_default();
            known.extend(entries.iter().map(|(key, value)| (text(key), (file, value, key.span))));
        }
        let Some(service) = tree.get("service") else { return };
        if let Some(extensions) = service.get("extensions").filter(|node| !node.is_null()) {
            self.extensions = Some((file, extensions));
        }
        let Some(pipelines) = service.get("pipelines").filter(|node| !node.is_null()) else { return };
        let Some(entries) = pipelines.as_mapping() else {
            let what = format!("service.pipelines: must be a mapping, this is {}", pipelines.kind());
            return push(checked, Severity::Error, file, Some(pipelines.span), what);
        };
        for (key, pipeline) in entries {
            let lists = self.pipelines.entry(text(key)).or_default();
            self.places.insert(text(key), (file, key.span));
            for (name, list) in pipeline.as_mapping().unwrap_or_default() {
                lists.insert(text(name), (file, list));
            }
        }
    }

    fn check(&self, checked: &mut Checked) {
        for (section, components) in &self.components {
            let needs = components
                .keys()
                .map(|id| Need { section: (*section).to_owned(), component: type_of(id).to_owned() });
            checked.needs.extend(needs);
        }
        if let Some((file, _, place)) = self.components.get("extensions").and_then(|found| found.get("opamp"))
        {
            let what = "extensions.opamp: a supervisor gives its collector an extension of this very name, and the \
                        two are merged: name this one otherwise, such as opamp/mine, or remove it";
            push(checked, Severity::Warning, file, Some(*place), what.to_owned());
        }
        for (id, lists) in &self.pipelines {
            let (file, place) = self.places.get(id).copied().unwrap_or(("", Span::START));
            if !SIGNALS.contains(&type_of(id)) {
                let hint = did_you_mean(type_of(id), SIGNALS);
                let what = format!(
                    "service.pipelines.{id}: {:?} is no kind of pipeline that is known ({}){hint}",
                    type_of(id),
                    SIGNALS.join(", ")
                );
                push(checked, Severity::Warning, file, Some(place), what);
            }
            for (role, sections) in [
                ("receivers", ["receivers", "connectors"].as_slice()),
                ("processors", &["processors"]),
                ("exporters", &["exporters", "connectors"]),
            ] {
                let at = format!("service.pipelines.{id}.{role}");
                match lists.get(role) {
                    Some((file, list)) if !list.is_null() => {
                        self.references(&at, file, list, sections, checked);
                    }
                    _ => {}
                }
                let is_empty = lists.get(role).is_none_or(|(_, list)| {
                    list.as_sequence().is_some_and(<[_]>::is_empty) || list.is_null()
                });
                if role != "processors" && is_empty {
                    let what = format!("{at}: is missing: a pipeline has at least one of them");
                    push(checked, Severity::Error, file, Some(place), what);
                }
            }
        }
        if let Some((file, extensions)) = self.extensions {
            self.references("service.extensions", file, extensions, &["extensions"], checked);
        }
    }

    /// Checks that every component of a list is defined in one of the sections.
    fn references(&self, at: &str, file: &str, list: &Node, sections: &[&str], checked: &mut Checked) {
        let Some(items) = list.as_sequence() else {
            let what = format!("{at}: must be a list, this is {}", list.kind());
            return push(checked, Severity::Error, file, Some(list.span), what);
        };
        let defined =
            |section: &&str| self.components.get(*section).into_iter().flat_map(|found| found.keys());
        for item in items {
            let id = text(item);
            if !sections.iter().flat_map(defined).any(|known| *known == id) {
                let hint = did_you_mean(id, sections.iter().flat_map(defined).copied());
                let what =
                    format!("{at}: {id:?} is not defined in {}: define it{hint}", sections.join(" or "));
                push(checked, Severity::Error, file, Some(item.span), what);
            }
        }
    }
}

fn push(checked: &mut Checked, severity: Severity, file: &str, place: Option<Span>, message: String) {
    checked.findings.push(Finding { severity, file: file.to_owned(), place, message });
}

fn text(node: &Node) -> &str {
    node.as_scalar().map_or("", |scalar| scalar.text.as_str())
}

/// The type of a component or pipeline: `otlp` of `otlp/2`.
fn type_of(id: &str) -> &str {
    id.split('/').next().unwrap_or(id).trim()
}
