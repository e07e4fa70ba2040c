//! WireGuard for one peer, and the shaping of packets around it.
