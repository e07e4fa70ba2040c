//! Which way packets take to a peer: candidates and the choice among them.
