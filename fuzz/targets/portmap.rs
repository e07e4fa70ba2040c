//! What a router, or whoever claims to be one, may answer: datagrams, descriptions, SOAP.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvemesh::portmap::{location, read, read_reply, services};

fuzz_target!(|data: &[u8]| {
    let _ = (read(data), location(data));
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = (services(text), read_reply(text));
    }
});
