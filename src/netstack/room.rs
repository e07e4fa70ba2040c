//! How much each connection may keep for a peer or a program that is slow.

/// What all connections may keep together, in bytes, if they are many: a node lives in a small container.
const BUDGET: usize = 16 << 20;
/// The most for one direction: enough for 100 Mbit/s over 40 ms. Memory is taken as it is used.
const MOST: usize = 512 << 10;
/// The least; one full window of TCP without scaling is four times that.
const LEAST: usize = 16 << 10;

/// The room for each direction of the next connection, when so many are open: a power of two, in bytes.
pub fn room_for(open: usize) -> usize {
    let share = BUDGET / (open + 1) / 2;
    let power = 1 << share.max(1).ilog2();
    power.clamp(LEAST, MOST)
}
