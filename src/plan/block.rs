//! Our part of a guest's notes, between marks; the rest is the admin's and stays as it is, byte for byte.

use super::mark::Mark;
use super::told;

/// Opens our part. It is a comment of Markdown: not shown.
const BEGIN: &str = "<!-- pvemesh-begin -->";
/// How our part began before it had an opening mark.
const OLD_BEGIN: &str = "# pvemesh ";
const MARK: &str = "<!-- pvemesh ";
const CLOSE: &str = " -->";
/// Between the admin's text and ours.
const GAP: &str = "\n\n";

/// Our part: what people read, then the mark.
pub(super) fn compose(text: &str, mark: &Mark) -> String {
    // A mark within the readable part would be found first; none can be there unless somebody put it into a name.
    let clean = text.replace(MARK, "").replace(BEGIN, "");
    format!("{BEGIN}\n{}{GAP}{mark}\n", clean.trim_end())
}

/// The notes taken apart: before our part, our part, after it. Without a mark all of it is the admin's.
fn parts(notes: &str) -> Option<(&str, &str, &str)> {
    let mark = notes.find(MARK)?;
    let end = mark + notes.get(mark..)?.find(CLOSE)? + CLOSE.len();
    let ahead = notes.get(..mark)?;
    let old = || {
        let at_line_start = |at: &usize| *at == 0 || ahead.as_bytes().get(at - 1) == Some(&b'\n');
        ahead.match_indices(OLD_BEGIN).map(|(at, _)| at).find(at_line_start)
    };
    let start = ahead.rfind(BEGIN).or_else(old).unwrap_or(mark);
    Some((notes.get(..start)?, notes.get(start..end)?, notes.get(end..)?))
}

/// The same notes with this as our part; behind the admin's text if there was none. What the guest was told stays unless the text says it anew.
pub fn replaced(notes: &str, text: &str, mark: &Mark) -> String {
    let parts = parts(notes);
    let kept = parts.and_then(|(_, ours, _)| told::text_of(ours)).filter(|_| told::text_of(text).is_none());
    let ours = match kept {
        Some(kept) => compose(&format!("{}\n\n{kept}", text.trim_end()), mark),
        None => compose(text, mark),
    };
    match parts {
        Some((before, _, after)) => format!("{before}{}{after}", ours.trim_end_matches('\n')),
        None if notes.is_empty() => ours,
        None => format!("{notes}{GAP}{ours}"),
    }
}

/// Our part of the notes, to be put back by [`put_back`].
pub fn part(notes: &str) -> Option<&str> {
    parts(notes).map(|(_, ours, _)| ours)
}

/// The same notes with our part as it was, or without it if there was none.
pub fn put_back(notes: &str, part: Option<&str>) -> String {
    match (parts(notes), part) {
        (Some((before, _, after)), Some(part)) => format!("{before}{part}{after}"),
        _ => removed(notes),
    }
}

/// The same notes with another mark; the readable part stays.
pub fn remarked(notes: &str, mark: &Mark) -> String {
    let Some((before, ours, after)) = parts(notes) else { return notes.to_owned() };
    let readable = ours.find(MARK).and_then(|at| ours.get(..at)).unwrap_or_default();
    format!("{before}{readable}{mark}{after}")
}

/// The same notes without our part.
pub fn removed(notes: &str) -> String {
    let Some((before, _, after)) = parts(notes) else { return notes.to_owned() };
    let before = before.strip_suffix(GAP).unwrap_or(before);
    format!("{before}{}", after.strip_prefix('\n').unwrap_or(after))
}

#[cfg(test)]
mod tests {
    use super::super::mark::{Identity, RunId};
    use super::*;

    fn mark(generation: u64) -> Mark {
        Mark {
            vmid: "101".parse().unwrap(),
            role: "exit-node".to_owned(),
            name: "exit-1".parse().unwrap(),
            run: RunId::new(7),
            ready: true,
            fleet: None,
            identity: Identity { generation, ..Identity::default() },
        }
    }

    #[test]
    fn the_admin_s_text_stays_byte_for_byte_wherever_it_stands() {
        for (before, after) in
            [("", ""), ("my <b>notes</b>\n  \t\n", ""), ("", "\nthe rack\u{fc}ber\r\n\n"), ("a\n\n\n", " b <!-- c -->\n")]
        {
            let ours = compose("# pvemesh exit node: exit-1\n", &mark(1));
            let notes = format!("{before}{}{after}", ours.trim_end());
            let again = replaced(&notes, "# pvemesh exit node: exit-1\nmore", &mark(2));
            assert!(again.starts_with(before) && again.ends_with(after) && again.contains("more"), "{again:?}");
            assert_eq!(Mark::find(&again), Some(mark(2)));
            assert_eq!(replaced(&again, "# pvemesh exit node: exit-1\nmore", &mark(2)), again, "nothing to do");
        }
    }

    #[test]
    fn notes_written_before_there_was_an_opening_mark_are_replaced_too() {
        let old = format!("mine\n# pvemesh exit node: exit-1\n\ntext\n\n{}\nand mine\n", mark(0));
        let new = replaced(&old, "# pvemesh exit node: exit-1", &mark(1));
        assert!(new.starts_with("mine\n<!-- pvemesh-begin -->\n") && new.ends_with("\nand mine\n") && !new.contains("text"), "{new:?}");
        assert_eq!(new.matches(OLD_BEGIN).count(), 1);
    }

    #[test]
    fn our_part_comes_behind_the_admin_s_and_goes_without_a_trace() {
        for notes in ["", "mine", "mine\n", "mine\n\n", "mine <!-- x -->"] {
            let with = replaced(notes, "attached", &mark(0));
            assert!(with.starts_with(notes) && Mark::find(&with).is_some());
            assert_eq!(removed(&with), notes);
            assert_eq!(removed(notes), notes);
        }
    }

    #[test]
    fn what_the_guest_was_told_stays_unless_it_is_told_anew() {
        let told = |memory: u32| format!("<!-- settings of this pvemesh guest\nx = {memory}\n-->");
        let notes = replaced("mine", &format!("# pvemesh node: a\n{}", told(1)), &mark(1));
        let refreshed = replaced(&notes, "# pvemesh node: b", &mark(2));
        assert!(refreshed.contains(&told(1)) && refreshed.contains("node: b"), "{refreshed}");
        assert_eq!(replaced(&refreshed, "# pvemesh node: b", &mark(2)), refreshed, "nothing to do");
        let anew = replaced(&refreshed, &format!("# pvemesh node: b\n{}", told(2)), &mark(2));
        assert!(anew.contains(&told(2)) && !anew.contains(&told(1)), "{anew}");
    }

    #[test]
    fn our_part_is_put_back_and_what_the_admin_wrote_meanwhile_stays() {
        let old = replaced("mine", "# pvemesh node: a", &mark(1));
        let new = replaced(&old, "# pvemesh exit node: a", &mark(2)).replace("mine", "mine, and more");
        assert_eq!(put_back(&new, part(&old)), old.replace("mine", "mine, and more"));
        assert_eq!((put_back(&new, part("mine")).as_str(), put_back("mine", part(&old)).as_str()), ("mine, and more", "mine"));
    }

    #[test]
    fn another_mark_leaves_the_readable_part() {
        let notes = replaced("mine", "# pvemesh exit node: exit-1", &mark(1));
        let again = remarked(&notes, &mark(2));
        assert_eq!(again, notes.replace("gen=1", "gen=2"));
    }
}
