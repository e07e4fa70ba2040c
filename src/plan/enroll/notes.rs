//! A container's Notes, which are its owner's, and our part of them.

use crate::plan::block;
use crate::plan::mark::Mark;
use crate::plan::render::{self, Notes, RenderError};

/// The notes with our part, or without it; what the owner wrote stays.
///
/// # Errors
/// If our part cannot be rendered, or the whole is longer than Proxmox takes.
pub fn joined(there: &str, ours: Option<&(Notes, Mark)>, more: &str) -> Result<String, RenderError> {
    let Some((notes, mark)) = ours else { return Ok(block::removed(there)) };
    let text = block::replaced(there, &format!("{}{more}", render::enrolled(notes)?), mark);
    if text.len() > render::MAX_NOTES { Err(RenderError::TooLong(text.len())) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::mark::{Identity, RunId};

    #[test]
    fn what_the_owner_wrote_stays_and_comes_back() {
        let notes = Notes {
            vmid: "105".parse().unwrap(),
            name: "wiki".parse().unwrap(),
            role: "node".to_owned(),
            coordinator: "http://192.168.1.5:8080".to_owned(),
            offers: Vec::new(),
            version: "0.1.0".to_owned(),
            told: None,
        };
        let mark = Mark {
            vmid: notes.vmid,
            role: "enrolled-node".to_owned(),
            name: notes.name.clone(),
            run: RunId::new(7),
            ready: true,
            identity: Identity::default(),
            fleet: None,
        };
        let owners = "# My wiki\nroot password: in the safe\n";
        let text = joined(owners, Some(&(notes.clone(), mark.clone())), "\n- address `100.64.0.1`").unwrap();
        assert!(text.starts_with(owners), "{text}");
        assert!(text.contains("pvemesh unenroll 105") && text.contains("100.64.0.1"), "{text}");
        assert_eq!(Mark::find(&text), Some(mark.clone()));
        assert_eq!(joined(&text, None, "").unwrap(), owners);
        // Once more does not pile up.
        let again = joined(&text, Some(&(notes.clone(), mark.clone())), "\n- address `100.64.0.1`").unwrap();
        assert_eq!(again, text);
        assert!(joined(&"x".repeat(8000), Some(&(notes, mark)), "").is_err());
    }
}
