//! How a DNS message is laid out (RFC 1035, section 4.1), read without taking it apart: a server's reply is passed on as it came, whatever
//! records are in it, so long as it is whole. Time and memory do not depend on what its names would unfold to.

use super::message::HEADER;

/// The two bits in front of a pointer (section 4.1.4).
const POINTER: u8 = 0xc0;
/// A name with the lengths of its labels.
const MAX_NAME: usize = 255;
/// Type, class, time to live, and the length of what follows.
const RECORD_HEAD: usize = 10;
/// Type and class.
const QUESTION_TAIL: usize = 4;

/// The four counts of a header: questions, answers, authorities, additional records.
fn counts(message: &[u8]) -> Option<[u16; 4]> {
    let head = message.first_chunk::<HEADER>()?;
    Some([4, 6, 8, 10].map(|at| u16::from_be_bytes([head.get(at).copied().unwrap_or(0), head.get(at + 1).copied().unwrap_or(0)])))
}

/// Where a name ends that begins here. A pointer ends it; where that leads is not looked at.
fn name_end(message: &[u8], start: usize, pointers: bool) -> Option<usize> {
    let mut at = start;
    loop {
        let length = *message.get(at)?;
        match length & POINTER {
            0 if length == 0 => return Some(at + 1),
            0 => at += 1 + usize::from(length),
            POINTER if pointers => return message.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
        if at - start >= MAX_NAME {
            return None;
        }
    }
}

/// The one question of a message, as it was written. `None` if there is another number of them, or it is cut or compressed.
pub(super) fn question(message: &[u8]) -> Option<&[u8]> {
    let [1, ..] = counts(message)? else { return None };
    message.get(HEADER..name_end(message, HEADER, false)? + QUESTION_TAIL)
}

/// Whether everything that the header counts is there.
pub(super) fn is_whole(message: &[u8]) -> bool {
    let walk = || {
        let [questions, records @ ..] = counts(message)?;
        let mut at = HEADER;
        for _ in 0..questions {
            at = name_end(message, at, true)? + QUESTION_TAIL;
        }
        for _ in 0..records.into_iter().map(u32::from).sum() {
            at = name_end(message, at, true)?;
            let head = message.get(at..at + RECORD_HEAD)?.last_chunk::<2>()?;
            at += RECORD_HEAD + usize::from(u16::from_be_bytes(*head));
        }
        (at <= message.len()).then_some(())
    };
    walk().is_some()
}
