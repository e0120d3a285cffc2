//! `muster_fuzzing::template` for cargo-fuzz.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| muster_fuzzing::template(data));
