//! A template's text: it is refused, or can be written for any values.

use muster_domain::manifest::{Manifest, parse};
use muster_domain::template::{
    CompiledTemplate, FileSpec, MAX_PROBLEMS, Segment, TemplateSpec, TypedValue, compile, render,
};
use muster_domain::yaml::{Located, Node, Scalar, Span, Style, Value, parse_documents};

/// A template with a variable of each kind, of which the files are taken away.
const VARIABLES: &str = "apiVersion: opamp.io/v1
kind: ConfigTemplate
metadata: {name: t, version: v1}
spec:
  variables:
    - {name: s, type: string, default: 'a: \"b\"'}
    - {name: i, type: int, default: 3}
    - {name: f, type: float, default: 0.5}
    - {name: b, type: bool, default: true}
  files:
    - {name: f, content: x}
";
/// Values that YAML would read as something else, or not at all.
const VALUES: [&str; 6] = ["", "plain", "a: b", "yes\n- x", "\"'{[&*!|>%@`", "\u{0}\u{7f}\u{2028}\u{feff}"];

/// Compiles text as a file and as a config.
pub fn template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(documents) = parse(VARIABLES) else { panic!("the variables are well formed") };
    let Some(Manifest::ConfigTemplate(manifest)) = documents.into_iter().next().map(|found| found.manifest)
    else {
        panic!("the variables are in a template")
    };
    let located = |value: &str| Located { value: value.to_owned(), span: Span::START };
    let content = Node { value: Value::Scalar(Scalar::new(text, Style::Quoted)), span: Span::START };
    let file = FileSpec { name: located("f"), content_type: located("text/plain"), content };
    let as_file = TemplateSpec { files: vec![file], ..manifest.spec.clone() };
    if let Some(compiled) = compiled(&as_file) {
        check(&compiled, false);
    }
    let Ok(documents) = parse_documents(text) else { return };
    if let Some(config) = documents.into_iter().next().map(|document| document.root) {
        let as_config = TemplateSpec { files: Vec::new(), config: Some(config), ..manifest.spec };
        if let Some(compiled) = compiled(&as_config) {
            check(&compiled, true);
        }
    }
}

fn compiled(spec: &TemplateSpec) -> Option<CompiledTemplate> {
    match compile(spec) {
        Ok(compiled) => {
            assert_eq!(compile(spec).as_ref(), Ok(&compiled), "compiling is a function");
            Some(compiled)
        }
        Err(problems) => {
            assert!(!problems.is_empty() && problems.len() <= MAX_PROBLEMS, "{problems:?}");
            None
        }
    }
}

fn check(compiled: &CompiledTemplate, is_yaml: bool) {
    for file in &compiled.files {
        for segment in &file.body.segments {
            if let Segment::Slot(number) = segment {
                assert!((*number as usize) < file.slots.len(), "{file:?}");
            }
        }
        for value in VALUES {
            let typed = TypedValue::String(value.to_owned());
            let values: Vec<_> = file.slots.iter().map(|slot| slot.encoding.encode(&typed)).collect();
            let text = render(&file.body, &values);
            if is_yaml {
                let read = parse_documents(&text);
                assert!(read.is_ok(), "{read:?} in the config for {value:?}: {text:?}");
            }
        }
    }
}
