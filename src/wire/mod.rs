//! Every byte exchanged with other mesh programs.

pub mod admin;
pub mod control;
pub mod derp;
pub mod disco;
pub mod stun;
pub mod tsmp;
