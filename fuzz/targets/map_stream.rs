//! The map stream as a client reads it: frames cut anywhere, and the messages in them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pvemesh::wire::control::frame::{Deframer, encode};
use pvemesh::wire::control::{MapResponse, json};

fuzz_target!(|data: &[u8]| {
    let Some((cut, data)) = data.split_first() else { return };
    let mut deframer = Deframer::default();
    for piece in data.chunks(usize::from(*cut).max(1)) {
        deframer.push(piece);
        loop {
            match deframer.next_message() {
                Ok(Some(bytes)) => message(&bytes),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    message(data);
    if let Ok(framed) = encode(data) {
        let mut deframer = Deframer::default();
        deframer.push(&framed);
        assert_eq!(deframer.next_message().unwrap().as_deref(), Some(data));
        assert!(!deframer.is_midway());
    }
});

/// What is read can be written, and what is written can be read.
fn message(bytes: &[u8]) {
    let Ok(map) = json::from_slice::<MapResponse>(bytes) else { return };
    let written = serde_json::to_vec(&map).unwrap();
    json::from_slice::<MapResponse>(&written).unwrap();
}
