//! Words that must not stand in the code: unfinished work anywhere, clocks and randomness in pure
//! crates, and in roles what simulation could not repeat.

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

/// One seed of the simulation gives one history: the time, random bits and tasks come from outside.
const SIMULATED: &[&str] = &["services/gateway/src/", "services/control/src/", "services/sim/src/"];

/// What is forbidden there, and what to write.
const UNREPEATABLE: &[(&str, &str)] = &[
    ("SystemTime::now", "ask the engines' clock"),
    ("std::time::Instant", "use tokio's, which simulation holds"),
    ("Uuid::now_v7", "draw it from the engines' random source"),
    ("Uuid::new_v4", "draw it from the engines' random source"),
    ("rand::", "draw from the engines' random source"),
    ("RandomState", "use a BTreeMap, or sort before the order matters"),
    ("watch::", "it wakes in random order: use a Notify and a count"),
    ("tokio::spawn", "use the engines' spawner"),
    ("tasks.spawn(", "use the engines' spawner"),
    ("tracker.spawn(", "use the engines' spawner"),
];

pub(super) fn check(source: &Text) -> Vec<Finding> {
    let mut findings = unfinished_and_impure(source);
    if SIMULATED.iter().any(|prefix| source.path.starts_with(prefix)) {
        findings.extend(unrepeatable(source));
    }
    findings
}

fn unrepeatable(source: &Text) -> Vec<Finding> {
    let mut findings = Vec::new();
    let tests = |line: &str| line.trim() == "#[cfg(test)]";
    let mut lines = (1..).zip(source.text.lines()).take_while(|(_, line)| !tests(line)).peekable();
    while let Some((number, line)) = lines.next() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        for (word, mend) in UNREPEATABLE.iter().filter(|(word, _)| has_word(line, word)) {
            findings.push(Finding::new(&source.path, number, format!("{word} in a role"), *mend));
        }
        let is_select = line.trim_end().ends_with("select! {");
        if is_select && lines.peek().is_none_or(|(_, next)| next.trim() != "biased;") {
            let mend = "begin it with `biased;`, and order the branches so that none starves";
            findings.push(Finding::new(&source.path, number, "select! polls in random order", mend));
        }
    }
    findings
}

fn unfinished_and_impure(source: &Text) -> Vec<Finding> {
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
    fn what_simulation_could_not_repeat_is_found_in_roles() {
        for (word, _) in UNREPEATABLE {
            assert_eq!(found("services/gateway/src/a.rs", &format!("let a = {word} ;\n")), [1], "{word}");
        }
        let select = "tokio::select! {\n    a = b => {}\n}\n";
        assert_eq!(found("services/control/src/a/b.rs", select), [1]);
        assert_eq!(found("services/api/src/a.rs", select), [0; 0]);
        let biased = "let a = tokio::select! {\n    biased;\n    a = b => {}\n};\n";
        assert_eq!(found("services/control/src/a.rs", biased), [0; 0]);
        let in_tests = "//! Not rand::random().\n#[cfg(test)]\nmod tests { tokio::spawn(a) }\n";
        assert_eq!(found("services/gateway/src/a.rs", in_tests), [0; 0]);
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
