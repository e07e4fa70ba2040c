//! What came, went and was dropped.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Disco packets that came and went, and those dropped, by the reason.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[allow(missing_docs, reason = "named by the macro's caller")]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)+
        }
    };
}

counters! {
    /// Pings sent.
    pings_out,
    /// Pongs sent.
    pongs_out,
    /// Call-me-maybes sent.
    calls_out,
    /// Call-me-maybes accepted.
    calls_in,
    /// Offers of many open ports sent.
    offers_out,
    /// Those accepted.
    offers_in,
    /// Pings sent to guessed ports.
    guesses_out,
    /// Pings sent only to open a port.
    openings_out,
    /// Pings accepted.
    pings_in,
    /// Pongs accepted.
    pongs_in,
    /// Dropped before any cryptography: the sender's key is no peer's.
    stranger,
    /// Dropped: sealed with other keys (as after a restart of ours), or altered.
    forged,
    /// Dropped: not a disco packet, or a message cut short.
    malformed,
    /// Dropped: a message we do not read.
    unknown,
    /// Dropped: in the name of a node that does not have this disco key; among them our own pings, sent back to us.
    wrong_node,
    /// Dropped: a ping seen before.
    replayed,
    /// Dropped: a pong to no ping of ours.
    unasked,
    /// Dropped: from an address that is talked to from another socket of ours.
    elsewhere,
    /// Dropped: a call-me-maybe, or an offer, that did not come through a relay.
    misplaced,
}
