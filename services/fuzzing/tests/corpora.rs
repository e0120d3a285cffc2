//! Every way in over its corpus and over inputs made from it. More of them with
//! `MUSTER_FUZZ_INPUTS=1000000`, others with `MUSTER_FUZZ_SEED=2`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests end with their panics")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use muster_fuzzing::{Mutator, TARGETS, Target};

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn variable(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().unwrap())
}

fn run(name: &str) {
    let (_, target): (_, Target) = *TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let seeds = corpus(name);
    let mut mutator = Mutator::new(variable("MUSTER_FUZZ_SEED", 1));
    let inputs = variable("MUSTER_FUZZ_INPUTS", 12_000);
    let began = Instant::now();
    for input in &seeds {
        target(input);
    }
    for at in 0..inputs {
        let input = mutator.input(&seeds);
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            panic!("{name}, input {at}: {:?} ({input:?})", String::from_utf8_lossy(&input));
        }
    }
    println!("{name}: {} files, {inputs} inputs in {:?}", seeds.len(), began.elapsed());
}

#[test]
fn session() {
    run("session");
}

#[test]
fn polls() {
    run("polls");
}

#[test]
fn envelope() {
    run("envelope");
}

#[test]
fn manifest() {
    run("manifest");
}

#[test]
fn selector() {
    run("selector");
}

#[test]
fn template() {
    run("template");
}
