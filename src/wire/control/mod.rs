//! The control protocol of coordinator and node ("ts2021"): Noise handshake and records, map framing, JSON messages.
//!
//! Bytes and values only; sockets, HTTP and compression belong to `sys`.
//!
//! ```text
//! TCP or TLS > HTTP/1.1 upgrade > Noise records (noise) > [early payload] > HTTP/2 > JSON (types), or framed JSON (frame)
//! ```

pub mod frame;
pub mod json;
pub mod noise;
mod types;

pub use types::*;

/// The capability version this program speaks: what it implements of the client side, not the newest number there is.
pub const CAPABILITY_VERSION: u16 = 130;
/// The oldest capability version (Tailscale 1.80) a coordinator has to serve.
pub const MINIMUM_CAPABILITY_VERSION: u16 = 113;
/// The HTTP path of the upgrade request.
pub const UPGRADE_PATH: &str = "/ts2021";
/// The value of the `Upgrade` header.
pub const UPGRADE_PROTOCOL: &str = "tailscale-control-protocol";
/// The header that carries the base64 of the Noise initiation.
pub const HANDSHAKE_HEADER: &str = "X-Tailscale-Handshake";
/// The path of registration inside the tunnel.
pub const REGISTER_PATH: &str = "/machine/register";
/// The path of map requests inside the tunnel.
pub const MAP_PATH: &str = "/machine/map";
/// The header that names the node key as a hint for load balancers.
pub const LOAD_BALANCER_HEADER: &str = "Ts-Lb";
