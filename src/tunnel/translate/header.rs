//! The headers of both families, read and written.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::checksum::Sum;
use super::super::packet::{put, u16_at, u32_at};
use super::{FRAGMENT_HEADER, V4_HEADER, V6_HEADER};

/// IPv6 headers that may come before the one that counts (RFC 8200, section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// More of them than this is nothing anybody sends.
const MAX_EXTENSIONS: usize = 8;

/// IPv4 options that say by which way the packet is to go (RFC 791), and the two of one byte.
const LOOSE_ROUTE: u8 = 131;
const STRICT_ROUTE: u8 = 137;
const END: u8 = 0;
const NOTHING: u8 = 1;

const MORE: u16 = 0x2000;
const MAY_NOT_FRAGMENT: u16 = 0x4000;
const OFFSET: u16 = 0x1fff;

/// Which part of a packet this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fragment {
    /// Where it begins, in units of 8 bytes.
    pub(super) offset: u16,
    /// Whether it is not the last.
    pub(super) more: bool,
    /// Of the whole packet; 16 bits in IPv4.
    pub(super) id: u32,
}

/// What the headers of an IPv6 packet say, extension headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct V6 {
    pub(super) class: u8,
    pub(super) hops: u8,
    pub(super) source: Ipv6Addr,
    pub(super) destination: Ipv6Addr,
    pub(super) fragment: Option<Fragment>,
    pub(super) protocol: u8,
    /// Where the transport header begins; the bytes before it are there.
    pub(super) at: usize,
    /// Bytes from there on, as the header says: a quoted packet is cut short.
    pub(super) length: usize,
}

/// What the header of an IPv4 packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct V4 {
    pub(super) class: u8,
    pub(super) id: u16,
    pub(super) may_not_fragment: bool,
    pub(super) fragment: Option<Fragment>,
    pub(super) hops: u8,
    pub(super) protocol: u8,
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    /// Where the transport header begins; the bytes before it are there.
    pub(super) at: usize,
    /// Bytes from there on, as the header says.
    pub(super) length: usize,
}

/// Whether a transport header is to be found in this part of a packet.
pub(super) fn is_first(fragment: Option<Fragment>) -> bool {
    fragment.is_none_or(|fragment| fragment.offset == 0)
}

impl V6 {
    /// Reads the headers of a packet that may be cut short after them. `None` for what does not read, for a routing header that is not used
    /// up (RFC 7915, section 5.1), and for headers behind a fragment's, which would have to be cut out of the fragments.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<V6_HEADER>()?;
        if header.first()? >> 4 != 6 {
            return None;
        }
        let end = V6_HEADER + usize::from(u16_at(header, 4)?);
        let (mut protocol, mut at, mut fragment) = (*header.get(6)?, V6_HEADER, None);
        for _ in 0..MAX_EXTENSIONS {
            if fragment.is_some() || !matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
                break;
            }
            let extension = bytes.get(at..)?;
            let mut length = 8 * (1 + usize::from(*extension.get(1)?));
            match protocol {
                ROUTING if *extension.get(3)? != 0 => return None,
                FRAGMENT => {
                    let place = u16_at(extension, 2)?;
                    fragment = Some(Fragment { offset: place >> 3, more: place & 1 != 0, id: u32_at(extension, 4)? });
                    length = FRAGMENT_HEADER;
                }
                _ => {}
            }
            protocol = *extension.first()?;
            at += length;
        }
        (at <= end && at <= bytes.len()).then_some(())?;
        Some(Self {
            class: u8::try_from(u16_at(header, 0)? >> 4 & 0xff).ok()?,
            hops: *header.get(7)?,
            source: Ipv6Addr::from(*header.get(8..)?.first_chunk::<16>()?),
            destination: Ipv6Addr::from(*header.get(24..)?.first_chunk::<16>()?),
            fragment,
            protocol,
            at,
            length: end - at,
        })
    }

    /// Its two addresses, as a checksum has them in it.
    pub(super) fn addresses(&self) -> Sum {
        super::addresses(&self.source.octets(), &self.destination.octets())
    }

    /// All that an ICMPv6 checksum covers before the message (RFC 8200, section 8.1).
    pub(super) fn pseudo(&self) -> Sum {
        let length = u32::try_from(self.length).unwrap_or_default().to_be_bytes();
        self.addresses().add(&length).add_u16(self.protocol.into())
    }

    /// Bytes of the header as it is written.
    pub(super) fn header_length(&self) -> usize {
        V6_HEADER + if self.fragment.is_some() { FRAGMENT_HEADER } else { 0 }
    }

    /// Writes the header so that it ends at `at`; says where it begins. `None` if there is no room for it.
    pub(super) fn write(&self, bytes: &mut [u8]) -> Option<usize> {
        let start = self.at.checked_sub(self.header_length())?;
        let header = bytes.get_mut(start..self.at)?;
        let payload = u16::try_from(self.length + self.header_length() - V6_HEADER).ok()?;
        put(header, 0, (0x6000 | u16::from(self.class) << 4).to_be_bytes());
        put(header, 2, [0, 0]);
        put(header, 4, payload.to_be_bytes());
        put(header, 6, [if self.fragment.is_some() { FRAGMENT } else { self.protocol }, self.hops]);
        put(header, 8, self.source.octets());
        put(header, 24, self.destination.octets());
        if let Some(Fragment { offset, more, id }) = self.fragment {
            put(header, V6_HEADER, [self.protocol, 0]);
            put(header, V6_HEADER + 2, (offset << 3 | u16::from(more)).to_be_bytes());
            put(header, V6_HEADER + 4, id.to_be_bytes());
        }
        Some(start)
    }
}

impl V4 {
    /// Reads the header of a packet that may be cut short after it. Options are passed over; `None` for what does not read, and for a
    /// packet that says by which way it is to go and has not gone it (RFC 7915, section 4.1).
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let at = usize::from(bytes.first()? & 0xf) * 4;
        let header = bytes.get(..at).filter(|_| bytes.first().is_some_and(|first| first >> 4 == 4) && at >= V4_HEADER)?;
        let flags = u16_at(header, 6)?;
        let id = u16_at(header, 4)?;
        let fragment = Fragment { offset: flags & OFFSET, more: flags & MORE != 0, id: id.into() };
        if is_source_routed(header.get(V4_HEADER..)?) {
            return None;
        }
        Some(Self {
            class: *header.get(1)?,
            id,
            may_not_fragment: flags & MAY_NOT_FRAGMENT != 0,
            fragment: (fragment.offset != 0 || fragment.more).then_some(fragment),
            hops: *header.get(8)?,
            protocol: *header.get(9)?,
            source: Ipv4Addr::from(*header.get(12..)?.first_chunk::<4>()?),
            destination: Ipv4Addr::from(*header.get(16..)?.first_chunk::<4>()?),
            at,
            length: usize::from(u16_at(header, 2)?).checked_sub(at)?,
        })
    }

    /// Its two addresses, as a checksum has them in it.
    pub(super) fn addresses(&self) -> Sum {
        super::addresses(&self.source.octets(), &self.destination.octets())
    }

    /// Writes the header, without options, so that it ends at `at`; says where it begins. `None` if there is no room for it.
    pub(super) fn write(&self, bytes: &mut [u8]) -> Option<usize> {
        let start = self.at.checked_sub(V4_HEADER)?;
        let header = bytes.get_mut(start..self.at)?;
        let mut flags = if self.may_not_fragment { MAY_NOT_FRAGMENT } else { 0 };
        if let Some(Fragment { offset, more, .. }) = self.fragment {
            flags |= offset & OFFSET | if more { MORE } else { 0 };
        }
        put(header, 0, [0x45, self.class]);
        put(header, 2, u16::try_from(V4_HEADER + self.length).ok()?.to_be_bytes());
        put(header, 4, self.id.to_be_bytes());
        put(header, 6, flags.to_be_bytes());
        put(header, 8, [self.hops, self.protocol, 0, 0]);
        put(header, 12, self.source.octets());
        put(header, 16, self.destination.octets());
        let checksum = Sum::default().add(header).checksum();
        put(header, 10, checksum);
        Some(start)
    }
}

/// Whether there is a route among the options that is not used up.
fn is_source_routed(mut options: &[u8]) -> bool {
    while let Some(kind) = options.first() {
        let length = match *kind {
            END => return false,
            NOTHING => 1,
            _ => usize::from(options.get(1).copied().unwrap_or(u8::MAX)).max(2),
        };
        // The pointer, from 1, has not passed the end (RFC 791, section 3.1).
        if matches!(*kind, LOOSE_ROUTE | STRICT_ROUTE) && options.get(2).is_some_and(|pointer| usize::from(*pointer) <= length) {
            return true;
        }
        options = options.get(length..).unwrap_or_default();
    }
    false
}
