//! Small sets of rule numbers.

/// Words kept in place: enough for 128 rules, so that sets of most policies need no memory of their own.
const INLINE: usize = 2;

/// A set of numbers below a bound known when it is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Bits {
    first: [u64; INLINE],
    rest: Box<[u64]>,
}

impl Bits {
    /// An empty set for numbers below `bound`.
    pub(super) fn new(bound: usize) -> Self {
        Self { first: [0; INLINE], rest: vec![0; bound.div_ceil(64).saturating_sub(INLINE)].into_boxed_slice() }
    }

    fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.first.iter().chain(&self.rest).copied()
    }

    fn change(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        for (a, b) in self.first.iter_mut().chain(&mut self.rest).zip(other.words()) {
            *a = with(*a, b);
        }
    }

    pub(super) fn insert(&mut self, n: usize) {
        if let Some(word) = self.first.iter_mut().chain(&mut self.rest).nth(n / 64) {
            *word |= 1 << (n % 64);
        }
    }

    pub(super) fn contains(&self, n: usize) -> bool {
        self.words().nth(n / 64).is_some_and(|word| word & (1 << (n % 64)) != 0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words().all(|word| word == 0)
    }

    /// Whether the two share a number.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let [a, b] = self.first;
        let [c, d] = other.first;
        (a & c) | (b & d) != 0 || self.rest.iter().zip(&other.rest).any(|(a, b)| a & b != 0)
    }

    /// Whether the two share a number that is not in `without`.
    pub(super) fn meets_without(&self, other: &Self, without: &Self) -> bool {
        self.words().zip(other.words()).zip(without.words()).any(|((a, b), c)| a & b & !c != 0)
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.change(other, |a, b| a | b);
    }

    pub(super) fn remove(&mut self, other: &Self) {
        self.change(other, |a, b| a & !b);
    }

    /// The numbers in exactly one of the two.
    pub(super) fn difference(&self, other: &Self) -> Self {
        let mut difference = self.clone();
        difference.change(other, |a, b| a ^ b);
        difference
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words().enumerate().flat_map(|(at, word)| {
            std::iter::successors(Some(word), |word| Some(word & word.wrapping_sub(1)))
                .take_while(|word| *word != 0)
                .map(move |word| at * 64 + word.trailing_zeros() as usize)
        })
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_across_words() {
        let mut bits = Bits::new(130);
        for n in [0, 63, 64, 129] {
            bits.insert(n);
        }
        assert_eq!(bits.iter().collect::<Vec<_>>(), [0, 63, 64, 129]);
        assert!(bits.contains(64) && !bits.contains(65) && !bits.contains(1000));
        let mut other = Bits::new(130);
        other.insert(129);
        assert!(bits.meets(&other) && !bits.meets_without(&other, &other));
        bits.remove(&other);
        assert!(!bits.meets(&other) && !bits.is_empty());
    }
}
