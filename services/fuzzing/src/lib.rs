//! What is done with input from outside, each way in as a function of bytes that panics where a rule is
//! broken: `fuzz/targets` hands them to cargo-fuzz, the tests of this crate to generated inputs.

#![expect(clippy::panic, reason = "a broken rule ends the run with its panic")]

mod envelope;
mod manifest;
mod mutate;
mod polls;
mod selector;
mod session;
mod template;

pub use envelope::envelope;
pub use manifest::manifest;
pub use mutate::Mutator;
pub use polls::polls;
pub use selector::selector;
pub use session::session;
pub use template::template;

/// A way in.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("polls", polls),
    ("session", session),
    ("envelope", envelope),
    ("manifest", manifest),
    ("selector", selector),
    ("template", template),
];
