//! What nodes and relays send to the coordinator, read as the coordinator reads it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pvemesh::wire::control::{Hostinfo, MapRequest, RegisterRequest, RegisterResponse, json};

const VALUES: usize = 16 * 1024;

macro_rules! read {
    ($type:ty, $data:expr) => {
        let read = json::from_slice_within::<$type>(VALUES, $data);
        // The limit refuses, and changes nothing else.
        let unlimited = json::from_slice::<$type>($data);
        assert_eq!(read.is_ok(), unlimited.is_ok(), "no input here has so many values");
        if let Ok(read) = read {
            let written = serde_json::to_vec(&read).unwrap();
            json::from_slice::<$type>(&written).unwrap();
        }
    };
}

fuzz_target!(|data: &[u8]| {
    read!(RegisterRequest, data);
    read!(MapRequest, data);
    read!(Hostinfo, data);
    read!(RegisterResponse, data);
});
