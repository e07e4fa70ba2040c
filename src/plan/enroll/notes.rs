//! A container's Notes, which are its owner's, and our part of them.

use crate::plan::mark::Mark;
use crate::plan::render::{self, Notes, RenderError};

/// The line our part begins with. (A mark begins otherwise, so this is not taken for one.)
const BEGIN: &str = "<!-- pvemesh: from here on it is pvemesh's; what stands above stays -->";

/// What the owner wrote.
pub(super) fn owners(description: &str) -> String {
    description.split(BEGIN).next().unwrap_or_default().trim_end().to_owned()
}

/// The whole.
///
/// # Errors
/// If our part cannot be rendered, or the whole is longer than Proxmox takes.
pub fn joined(owner: &str, ours: Option<&(Notes, Mark)>, more: &str) -> Result<String, RenderError> {
    let Some((notes, mark)) = ours else { return Ok(owner.trim_end().to_owned()) };
    let part = mark.attach(&format!("{BEGIN}\n\n{}{more}", render::enrolled(notes)?));
    let owner = owner.trim_end();
    let text = if owner.is_empty() { part } else { format!("{owner}\n\n{part}") };
    if text.len() > render::MAX_NOTES { Err(RenderError::TooLong(text.len())) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::mark::RunId;

    #[test]
    fn what_the_owner_wrote_stays_and_comes_back() {
        let notes = Notes {
            vmid: "105".parse().unwrap(),
            name: "wiki".parse().unwrap(),
            role: "node".to_owned(),
            coordinator: "http://192.168.1.5:8080".to_owned(),
            offers: Vec::new(),
            version: "0.1.0".to_owned(),
        };
        let mark = Mark { vmid: notes.vmid, role: "enrolled-node".to_owned(), name: notes.name.clone(), run: RunId::new(7), ready: true };
        let text =
            joined("# My wiki\nroot password: in the safe\n", Some(&(notes.clone(), mark.clone())), "\n- address `100.64.0.1`").unwrap();
        assert!(text.starts_with("# My wiki\nroot password: in the safe\n\n<!-- pvemesh: "), "{text}");
        assert!(text.contains("pvemesh unenroll 105") && text.contains("100.64.0.1"), "{text}");
        assert_eq!(Mark::find(&text), Some(mark.clone()));
        assert_eq!(owners(&text), "# My wiki\nroot password: in the safe");
        assert_eq!(joined(&owners(&text), None, "").unwrap(), "# My wiki\nroot password: in the safe");
        // Once more does not pile up.
        let again = joined(&owners(&text), Some(&(notes.clone(), mark.clone())), "\n- address `100.64.0.1`").unwrap();
        assert_eq!(again, text);
        assert!(joined(&"x".repeat(8000), Some(&(notes, mark)), "").is_err());
    }
}
