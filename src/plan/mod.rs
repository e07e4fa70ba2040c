//! Provisioning decisions: what is wanted and what is there, turned into ordered steps.
//!
//! ```text
//!   GuestTexts --check--> GuestOptions + Role --.
//!                                                >-- create --> Outcome: already there | Plan { choices, steps } | Refusal
//!   reads of the API -------------> Observed ---'
//! ```
//!
//! Nothing here talks to anything. `sys::pve` carries the steps out, keeps the [`journal`] while it does, and takes them back on failure.

pub mod attach;
pub mod block;
mod change;
mod choose;
pub mod create;
pub mod destroy;
pub mod doctor;
pub mod enroll;
pub mod fleet;
pub mod golden;
pub mod guest;
pub mod high_availability;
pub mod hook;
pub mod identity;
pub mod inside;
pub mod journal;
mod lan;
pub mod ledger;
pub mod mark;
pub mod observed;
pub mod options;
pub mod permission;
mod refusal;
pub mod rekey;
pub mod render;
mod step;
pub mod sync;
mod told;
pub mod upgrade;

pub use change::Difference;
pub use choose::Choice;
pub use refusal::{Fault, Refusal};
pub use step::{Action, Carrier, RELAY_PORT, Step, TunEdit, Undo};

use base64::Engine as _;

use crate::ident::Secret;
use crate::settings::Guest;

/// The text that carries a guest's configuration in an environment variable: base64 of its TOML, since an environment holds no line breaks.
///
/// # Errors
/// If the configuration cannot be rendered.
pub fn environment(guest: &Guest) -> Result<Secret, render::RenderError> {
    Ok(Secret::new(base64::engine::general_purpose::STANDARD.encode(render::guest(guest)?)))
}
