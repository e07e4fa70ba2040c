//! Policy files: HuJSON, the grammar, and compiling what was read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pvemesh::coord::policy::Policy;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A refusal is a text for people: writing it must not fail either.
    if let Err(error) = Policy::parse(text) {
        assert!(!error.to_string().is_empty());
    }
});
