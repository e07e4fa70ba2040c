//! Which host or cluster each declared guest is on: the one it names, else the one that has its number, else the only one.

use super::file::Member;
use crate::ident::Vmid;
use crate::pve::reply::GuestSummary;

/// A host or cluster that the guests may be on.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// What it is called; absent where this very host is meant.
    pub name: Option<&'a str>,
    /// The guests it has.
    pub guests: &'a [GuestSummary],
}

/// A guest whose place is not clear, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("guest {vmid}: {why}")]
pub struct Unplaced {
    /// The guest.
    pub vmid: Vmid,
    /// Why.
    pub why: String,
    /// What to do.
    pub next: String,
}

/// Gives each member the number of its site.
///
/// # Errors
/// At the first guest that names an unknown site, is on several, is nowhere yet where there are several, or is declared twice for one.
pub fn assign(members: &[Member], sites: &[Site<'_>]) -> Result<Vec<usize>, Unplaced> {
    let mut places: Vec<usize> = Vec::with_capacity(members.len());
    for member in members {
        let vmid = member.options.vmid;
        let at = place(member, sites)?;
        if places.iter().zip(members).any(|(place, other)| *place == at && other.options.vmid == vmid) {
            let next = "take one of them out of the file".to_owned();
            return Err(Unplaced { vmid, why: "it is declared twice".to_owned(), next });
        }
        places.push(at);
    }
    Ok(places)
}

fn place(member: &Member, sites: &[Site<'_>]) -> Result<usize, Unplaced> {
    let vmid = member.options.vmid;
    let known = || sites.iter().filter_map(|site| site.name).collect::<Vec<_>>();
    if let Some(wanted) = &member.host {
        return sites.iter().position(|site| site.name == Some(wanted)).ok_or_else(|| {
            let known = if known().is_empty() { "none has a name".to_owned() } else { format!("there is {}", known().join(", ")) };
            let next = format!("correct it, or set it up: pvemesh init --name {wanted} --url https://HOST:8006");
            Unplaced { vmid, why: format!("host: no host or cluster is called {wanted}; {known}"), next }
        });
    }
    if sites.len() == 1 {
        return Ok(0);
    }
    let having: Vec<usize> =
        sites.iter().enumerate().filter(|(_, site)| site.guests.iter().any(|guest| guest.vmid == vmid)).map(|(at, _)| at).collect();
    let choice = |names: &[&str]| names.iter().map(|name| format!("host = \"{name}\"")).collect::<Vec<_>>().join(" or ");
    match having.as_slice() {
        [only] => Ok(*only),
        [] => Err(Unplaced {
            vmid,
            why: "no host or cluster has it yet, and it names none".to_owned(),
            next: format!("say which: {}", choice(&known())),
        }),
        several => {
            let names: Vec<&str> = several.iter().filter_map(|at| sites.get(*at)?.name).collect();
            Err(Unplaced {
                vmid,
                why: format!("{} have a guest of that number", names.join(" and ")),
                next: format!("say which: {}", choice(&names)),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(numbers: &[u32]) -> Vec<GuestSummary> {
        let guest = |number: &u32| GuestSummary {
            vmid: (*number).try_into().unwrap(),
            host: "pve".parse().unwrap(),
            container: true,
            name: "x".to_owned(),
            running: true,
            tags: Vec::new(),
            managed: false,
        };
        numbers.iter().map(guest).collect()
    }

    fn assigned(file: &str, home: &[u32], office: &[u32]) -> Result<Vec<usize>, String> {
        let (home, office) = (guests(home), guests(office));
        let sites = [Site { name: Some("home"), guests: &home }, Site { name: Some("office"), guests: &office }];
        assign(&super::super::read(file).unwrap().members, &sites).map_err(|e| format!("{e} / {}", e.next))
    }

    fn guest(id: u32, more: &str) -> String {
        format!("[[guest]]\nid = {id}\nrole = \"node\"\n{more}\n")
    }

    #[test]
    fn a_guest_goes_where_it_says_or_where_its_number_is() {
        let file = guest(101, "host = \"office\"") + &guest(102, "") + &guest(103, "");
        assert_eq!(assigned(&file, &[101, 102], &[103]), Ok(vec![1, 0, 1]));
        // Numbers are of one cluster.
        let both = guest(101, "host = \"office\"") + &guest(101, "host = \"home\"");
        assert_eq!(assigned(&both, &[], &[]), Ok(vec![1, 0]));
    }

    #[test]
    fn what_is_not_clear_is_named_with_what_to_write() {
        for (file, said) in [
            (
                guest(101, ""),
                "guest 101: no host or cluster has it yet, and it names none / say which: host = \"home\" or host = \"office\"",
            ),
            (guest(102, ""), "guest 102: home and office have a guest of that number / say which: host = \"home\" or host = \"office\""),
            (guest(101, "host = \"attic\""), "guest 101: host: no host or cluster is called attic; there is home, office"),
            (guest(103, "host = \"office\"") + &guest(103, ""), "guest 103: it is declared twice"),
        ] {
            let error = assigned(&file, &[102], &[102, 103]).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
