//! Words that must not stand in the code: unfinished work anywhere, clocks and randomness in pure crates.

use super::{Finding, Text};

/// Time and identifiers are arguments here.
const PURE: &[&str] = &["services/domain/", "services/opamp/", "services/ports/"];

/// Split, so that this file passes its own check.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("todo", "!"),
    concat!("unimplemented", "!"),
    concat!("#[", "ignore"),
];

const IMPURE: &[&str] = &[
    "SystemTime::now",
    "Instant::now",
    "OffsetDateTime::now_utc",
    "OffsetDateTime::now_local",
    "UtcDateTime::now",
    "Timestamp::now",
    "Uuid::now_v6",
    "Uuid::now_v7",
    "Uuid::new_v1",
    "Uuid::new_v4",
    "thread_rng",
    "rand::rng",
];

pub(super) fn check(source: &Text) -> Vec<Finding> {
    let pure = PURE.iter().any(|prefix| source.path.starts_with(prefix));
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(source.text.lines()) {
        if let Some(word) = UNFINISHED.iter().find(|word| has_word(line, word)) {
            let mend = "finish it, or file an issue and say here what is so now";
            findings.push(Finding::new(&source.path, number, format!("unfinished work ({word})"), mend));
        }
        let is_comment = line.trim_start().starts_with("//");
        if let Some(word) = IMPURE.iter().find(|word| pure && !is_comment && has_word(line, word)) {
            let what = format!("{word} in a pure crate");
            findings.push(Finding::new(&source.path, number, what, "take the time or the id as an argument"));
        }
    }
    findings
}

/// Whether `word` stands in the line with nothing of a longer identifier before or after it.
fn has_word(line: &str, word: &str) -> bool {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = word.starts_with(joins) && line[..at].ends_with(joins);
        let after = word.ends_with(joins) && line[at + word.len()..].starts_with(joins);
        !before && !after
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::text;

    fn found(path: &str, source: &str) -> Vec<usize> {
        check(&text(path, source)).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn unfinished_work_is_found_everywhere() {
        for word in UNFINISHED {
            assert_eq!(
                found("services/api/src/a.rs", &format!("fn a() {{}}\n// {word} later\n")),
                [2],
                "{word}"
            );
        }
        assert_eq!(found("proto/a.rs", concat!("    #[", "ignore = \"slow\"]\n")), [1]);
        assert!(found("proto/a.rs", concat!("let a = \"XX", "XX\"; let todos = METHO", "DO;\n")).is_empty());
    }

    #[test]
    fn clocks_and_randomness_are_found_in_pure_crates() {
        for word in IMPURE {
            assert_eq!(found("services/domain/src/a.rs", &format!("let a = {word}();\n")), [1], "{word}");
        }
        assert_eq!(found("services/domain/src/a.rs", "let a = std::time::Instant::now();\n"), [1]);
        assert_eq!(found("services/opamp/src/a.rs", "let a = OffsetDateTime::now_utc();\n"), [1]);
        assert!(found("services/opamp/src/a.rs", "//! Never calls `Instant::now`.\n").is_empty());
        assert!(found("services/gateway/src/a.rs", "let a = Instant::now();\n").is_empty());
    }
}
