//! STUN as servers and nodes read it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pvemesh::wire::stun::{read_request, read_response, request, response};

fuzz_target!(|data: &[u8]| {
    if let Ok(tx) = read_request(data) {
        assert_eq!(read_request(&request(tx)), Ok(tx));
    }
    if let Ok((tx, address)) = read_response(data) {
        assert_eq!(read_response(&response(tx, address)), Ok((tx, address)));
    }
});
