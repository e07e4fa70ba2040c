//! The options of an answer that are read, well-formed; all others are left out before the message is decoded.
//!
//! dhcproto asserts on the lengths of some options that we never asked for: a single odd one, sent by anybody on the link, must not end
//! the client.

/// Fixed fields and the magic cookie (RFC 2131, section 2; RFC 2132, section 2).
const HEADER: usize = 240;
const PAD: u8 = 0;
const END: u8 = 255;

/// The message with only the options that are read, each of a length it may have (RFC 2132). Stops at the first option that is cut off.
pub(super) fn only_read(message: &[u8]) -> Option<Vec<u8>> {
    let (header, mut rest) = message.split_at_checked(HEADER)?;
    let mut kept = header.to_vec();
    loop {
        rest = match rest {
            [PAD, after @ ..] => after,
            [END, ..] | [] | [_] => break,
            [code, length, after @ ..] => {
                let Some((value, after)) = after.split_at_checked(usize::from(*length)) else { break };
                if is_read(*code, value.len()) {
                    kept.extend([*code, *length]);
                    kept.extend(value);
                }
                after
            }
        };
    }
    kept.push(END);
    Some(kept)
}

fn is_read(code: u8, length: usize) -> bool {
    match code {
        // Message type.
        53 => length == 1,
        // Subnet mask, lease time, server identifier, T1, T2.
        1 | 51 | 54 | 58 | 59 => length == 4,
        // Routers, name servers.
        3 | 6 => length != 0 && length.is_multiple_of(4),
        // Domain name.
        15 => length != 0,
        _ => false,
    }
}
