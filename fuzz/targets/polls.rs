//! `muster_fuzzing::polls` for cargo-fuzz.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| muster_fuzzing::polls(data));
