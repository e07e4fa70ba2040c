//! What a map message says, found by looking for a few patterns: parsing thousands of peers for each of thousands of nodes would cost
//! more than the coordinator does. Equal bytes are looked at once, however many nodes receive them.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Read as _;
use std::sync::{Arc, Mutex};

/// Pieces remembered before all are forgotten.
const MEMORY: usize = 4096;

/// What one piece of a message says.
#[derive(Debug, Default)]
pub struct Summary {
    /// Numbers of completely described nodes.
    pub nodes: Vec<i64>,
    /// Numbers of removed nodes.
    pub removed: Vec<i64>,
    /// The markers of changes: see [`endpoint_of`] and [`name_of`].
    pub markers: Vec<u32>,
    pub keepalive: bool,
}

/// An endpoint that stands for the change of this number.
pub fn endpoint_of(marker: u32) -> std::net::SocketAddr {
    let [_, a, b, c] = marker.to_be_bytes();
    std::net::SocketAddr::from(([10, a, b, c], 41641))
}

/// A host name that stands for the change of this number.
pub fn name_of(marker: u32) -> String {
    format!("joiner{marker}")
}

/// Looks at messages.
#[derive(Debug, Default)]
pub struct Scanner {
    known: Mutex<HashMap<(usize, u64), Arc<Summary>>>,
    hasher: RandomState,
}

impl Scanner {
    /// What the pieces of a message say.
    pub fn scan(&self, message: &[u8], mut each: impl FnMut(&Summary)) {
        if message.first() == Some(&b'{') {
            return each(&summary(message));
        }
        let mut rest = message;
        while !rest.is_empty() {
            let length = zstd::zstd_safe::find_frame_compressed_size(rest).expect("a zstd frame");
            let (frame, after) = rest.split_at(length);
            rest = after;
            let key = (frame.len(), self.hasher.hash_one(frame));
            let known = self.known.lock().unwrap().get(&key).cloned();
            let seen = known.unwrap_or_else(|| {
                let fresh = Arc::new(summary(&unpack(frame)));
                let mut known = self.known.lock().unwrap();
                if known.len() >= MEMORY {
                    known.clear();
                }
                known.insert(key, fresh.clone());
                fresh
            });
            each(&seen);
        }
    }
}

pub fn unpack(message: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(message.len() * 4);
    zstd::stream::read::Decoder::new(message).unwrap().read_to_end(&mut text).expect("zstd");
    text
}

/// Our coordinator and Headscale write a node's fields in one order: ID, StableID, Name.
fn summary(text: &[u8]) -> Summary {
    let mut found = Summary { keepalive: text.starts_with(b"{\"KeepAlive\":true"), ..Summary::default() };
    for at in memchr::memmem::find_iter(text, b",\"StableID\":\"") {
        let digits = text[..at].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        found.nodes.push(number(&text[at - digits..]));
    }
    for at in memchr::memmem::find_iter(text, b"\"Name\":\"joiner") {
        found.markers.push(u32::try_from(number(&text[at + 14..])).unwrap());
    }
    for at in memchr::memmem::find_iter(text, b"\"10.") {
        let mut bytes = text[at + 4..].split(|byte| !byte.is_ascii_digit()).map(number);
        let mut next = || u8::try_from(bytes.next().unwrap()).unwrap();
        found.markers.push(u32::from_be_bytes([0, next(), next(), next()]));
    }
    if let Some(at) = memchr::memmem::find(text, b"\"PeersRemoved\":[") {
        let list = text[at + 16..].split(|byte| *byte == b']').next().unwrap();
        found.removed.extend(list.split(|byte| *byte == b',').map(number));
    }
    found
}

fn number(text: &[u8]) -> i64 {
    text.iter().take_while(|byte| byte.is_ascii_digit()).fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'))
}
