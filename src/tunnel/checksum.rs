//! The internet checksum (RFC 1071), fast enough to run over every byte of a tunnel.
//!
//! A sum of 16-bit words in one's complement does not depend on byte order as long as it is written back in the order it was
//! read in, so everything here is in the machine's own order.

/// A sum in progress. Parts may be added in any order; each but the last must have even length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes; an odd last one counts as if followed by a zero.
    pub(super) fn add(self, bytes: &[u8]) -> Self {
        // Eight independent sums of 32-bit words, which the compiler turns into vector instructions. Each holds 2^32 words.
        let (blocks, rest) = bytes.as_chunks::<32>();
        let mut sums = [0_u64; 8];
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let mut total = sums.iter().fold(self.0, |total, sum| add_folded(total, *sum));
        let (words, odd) = rest.as_chunks::<2>();
        for word in words {
            total = add_folded(total, u16::from_ne_bytes(*word).into());
        }
        if let [last] = odd {
            total = add_folded(total, u16::from_ne_bytes([*last, 0]).into());
        }
        Self(total)
    }

    /// Adds a number in network order.
    pub(super) fn add_u16(self, number: u16) -> Self {
        Self(add_folded(self.0, u16::from_ne_bytes(number.to_be_bytes()).into()))
    }

    /// The sum in 16 bits, as bytes to be written. Not inverted: what a checksum field holds that the kernel is to finish.
    pub(super) fn partial(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap_or_default().to_ne_bytes()
    }

    /// The checksum, as bytes to be written.
    pub(super) fn checksum(self) -> [u8; 2] {
        self.partial().map(|byte| !byte)
    }

    /// What a checksum becomes when part of what it covers is replaced (RFC 1624, equation 3). One that was wrong stays wrong.
    pub(super) fn adjusted(checksum: [u8; 2], old: Self, new: Self) -> [u8; 2] {
        Self::shifted(checksum.map(|byte| !byte), old, new).map(|byte| !byte)
    }

    /// The same for a sum that is not inverted: what a field holds that the kernel, or the cutting of a super-packet, is to finish.
    pub(super) fn shifted(partial: [u8; 2], old: Self, new: Self) -> [u8; 2] {
        Self::default().add(&partial).add(&new.partial()).add(&old.checksum()).partial()
    }

    /// Whether bytes that hold their own checksum add up.
    pub(super) fn is_valid(self) -> bool {
        self.partial() == [0xff; 2]
    }
}

fn add_folded(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, word by word.
    pub(in crate::tunnel) fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for pair in bytes.chunks(2) {
            let [high, low] = [pair.first(), pair.get(1)].map(|b| b.copied().unwrap_or_default());
            sum += u64::from(u16::from_be_bytes([high, low]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn the_example_of_rfc_1071_adds_up() {
        let sum = Sum::default().add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), [0xdd, 0xf2]);
        assert_eq!(sum.checksum(), [0x22, 0x0d]);
    }

    #[test]
    fn a_long_run_of_ones_does_not_overflow() {
        let bytes = vec![0xff; 65_535];
        assert_eq!(u16::from_be_bytes(Sum::default().add(&bytes).partial()), slow(&bytes));
    }

    #[test]
    fn the_example_of_rfc_1624_is_adjusted() {
        let word = |n: u16| Sum::default().add_u16(n);
        let adjusted = Sum::adjusted(0xdd2f_u16.to_be_bytes(), word(0x5555), word(0x3285));
        // Equation 3 of the RFC gives 0x0000 where equation 2 had given 0xffff.
        assert_eq!(adjusted, [0, 0]);
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_slow_sum(a in proptest::collection::vec(any::<u8>(), 0..300), b in proptest::collection::vec(any::<u8>(), 0..70)) {
            let even = a.get(..a.len() & !1).unwrap_or_default();
            let all: Vec<u8> = even.iter().chain(&b).copied().collect();
            let sum = Sum::default().add(even).add(&b);
            prop_assert_eq!(u16::from_be_bytes(sum.partial()), slow(&all));
            prop_assert_eq!(sum.add_u16(0x1234).partial(), Sum::default().add(&[0x12, 0x34]).add(even).add(&b).partial());
        }
    }
}
