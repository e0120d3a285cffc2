//! `kind: ConfigTemplate`.

use super::reader::Errors;
use crate::template::{DEFAULT_CONTENT_TYPE, FileSpec, TemplateSpec, VariableSpec, VariableType, compile};
use crate::yaml::{Located, Node, brief, did_you_mean};

/// Reads the spec, and compiles it to see what else is wrong.
pub(super) fn read(node: &Node, errors: &mut Errors) -> Option<TemplateSpec> {
    let fields = errors.fields(node, "spec", &["variables", "config", "files"])?;
    let mut spec = TemplateSpec {
        variables: Vec::new(),
        config: fields.get("config").cloned(),
        files: Vec::new(),
        span: node.span,
    };
    if let Some(list) = fields.get("variables") {
        for (n, item) in errors.list(list, "spec.variables").iter().enumerate() {
            spec.variables.extend(variable(item, &format!("spec.variables[{n}]"), errors));
        }
    }
    let mut complete = true;
    if let Some(list) = fields.get("files") {
        let items = errors.list(list, "spec.files");
        for (n, item) in items.iter().enumerate() {
            spec.files.extend(file(item, &format!("spec.files[{n}]"), errors));
        }
        complete = list.as_sequence().is_some() && spec.files.len() == items.len();
    }
    // Without the files that could not be read it would look as if there were none.
    if (complete || spec.config.is_some())
        && let Err(problems) = compile(&spec)
    {
        problems.into_iter().for_each(|problem| errors.add(problem.at(spec.span)));
    }
    Some(spec)
}

fn variable(node: &Node, path: &str, errors: &mut Errors) -> Option<VariableSpec> {
    let known = ["name", "type", "required", "enum", "default", "min", "max"];
    let fields = errors.fields(node, path, &known)?;
    let name = fields.located("name", errors);
    let kind = fields.string("type", errors).and_then(|text| {
        let kind = VariableType::ALL.into_iter().find(|kind| kind.name() == text);
        if kind.is_none() {
            let names = VariableType::ALL.map(VariableType::name);
            let hint = did_you_mean(text, names);
            let message = format!("{} is not a type: write one of {}{hint}", brief(text), names.join(", "));
            errors.push(fields.place("type"), &fields.path("type"), message);
        }
        kind
    });
    let required = fields.get("required").and_then(|node| errors.bool(node, &fields.path("required")));
    // Without its type only the name is of use: placeholders may have it.
    let typed = |field| fields.get(field).filter(|_| kind.is_some()).cloned();
    Some(VariableSpec {
        name: name?,
        kind: kind.unwrap_or(VariableType::String),
        required: required.unwrap_or_default(),
        one_of: typed("enum"),
        default: typed("default"),
        min: typed("min"),
        max: typed("max"),
    })
}

fn file(node: &Node, path: &str, errors: &mut Errors) -> Option<FileSpec> {
    let fields = errors.fields(node, path, &["name", "content_type", "content"])?;
    let name = fields.located("name", errors);
    let content_type = match fields.get("content_type") {
        Some(_) => fields.located("content_type", errors),
        None => Some(Located { value: DEFAULT_CONTENT_TYPE.to_owned(), span: fields.span }),
    };
    let content = fields.required("content", errors)?;
    errors.string(content, &fields.path("content"))?;
    Some(FileSpec { name: name?, content_type: content_type?, content: content.clone() })
}
