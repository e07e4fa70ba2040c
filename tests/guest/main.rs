//! What happens inside a guest's operating system: its configuration, its routes and firewall, its first process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stdout, clippy::print_stderr, reason = "test code")]

mod dhcp;
mod image;
mod init;
mod lxc;
mod masquerade;
mod netns;
mod render;
mod router;
