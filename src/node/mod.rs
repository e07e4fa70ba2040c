//! One mesh member: what the network map means for this machine.
