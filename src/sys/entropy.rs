//! Randomness from the operating system, for keys and for the seeds that the cores are started with.

use std::io;

use crate::ident::{DiscoPrivate, MachinePrivate, NodePrivate, RelayPrivate};

/// `N` random bytes.
///
/// # Errors
/// The system has no randomness to give; nothing that needs a key may go on then.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(format!("cannot get randomness from the system: {e}")))?;
    Ok(bytes)
}

/// 32 random bytes: the seed of a core or of a key.
///
/// # Errors
/// As [`bytes()`].
pub fn seed() -> io::Result<[u8; 32]> {
    bytes()
}

/// A new machine key.
///
/// # Errors
/// As [`bytes()`].
pub fn machine_key() -> io::Result<MachinePrivate> {
    seed().map(MachinePrivate::from_seed)
}

/// A new node key.
///
/// # Errors
/// As [`bytes()`].
pub fn node_key() -> io::Result<NodePrivate> {
    seed().map(NodePrivate::from_seed)
}

/// A new relay's key.
///
/// # Errors
/// As [`bytes()`].
pub fn relay_key() -> io::Result<RelayPrivate> {
    seed().map(RelayPrivate::from_seed)
}

/// A new disco key.
///
/// # Errors
/// As [`bytes()`].
pub fn disco_key() -> io::Result<DiscoPrivate> {
    seed().map(DiscoPrivate::from_seed)
}
