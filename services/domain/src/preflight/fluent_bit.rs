//! The classic format of Fluent Bit: sections of indented keys and values.

use crate::yaml::Span;

/// What is not well formed in a text, with its place.
pub(super) fn check(text: &str) -> Vec<(Span, String)> {
    let mut found = Vec::new();
    let mut in_section = false;
    for (number, line) in (1..).zip(text.lines()) {
        let content = line.trim();
        let column =
            u32::try_from(line.chars().take_while(|c| c.is_whitespace()).count() + 1).unwrap_or(u32::MAX);
        let mut wrong = |message: &str| found.push((Span { line: number, column }, message.to_owned()));
        match content.chars().next() {
            None | Some('#') => {}
            Some('@') => {
                let directive = content.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
                match directive.as_str() {
                    "@SET" if content.contains('=') => {}
                    "@SET" => wrong("@SET has no `=`: write @SET name=value"),
                    "@INCLUDE" if content.split_whitespace().nth(1).is_some() => {}
                    "@INCLUDE" => wrong("@INCLUDE names no file"),
                    _ => wrong("there is no such directive: there are @SET and @INCLUDE"),
                }
            }
            Some('[') => {
                let name = content.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                in_section = true;
                if name.is_none_or(|name| name.trim().is_empty()) {
                    wrong("is no section: write [NAME]");
                }
            }
            Some(_) if !in_section => wrong("stands in no section: begin one, such as [SERVICE]"),
            Some(_) if !line.starts_with([' ', '\t']) => wrong("is not indented: keys of a section are"),
            Some(_) if content.split_whitespace().nth(1).is_none() => wrong("has a key and no value"),
            Some(_) => {}
        }
    }
    found
}
