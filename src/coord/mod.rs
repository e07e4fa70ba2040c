//! The control plane: the client's view of the mesh, and the server that keeps it.

pub mod client;
pub mod policy;
pub mod server;
