//! Provisioning decisions: what is wanted and what is there, turned into ordered steps.

pub mod render;
