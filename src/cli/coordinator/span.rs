//! Spans of time on the command line.

use std::time::Duration;

use crate::time::Wall;

/// When a key is to expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expiry {
    Never,
    /// Seconds from now.
    After(u64),
    At(Wall),
}

/// Reads `never`, a span such as `180d`, or a time such as `2027-01-31T12:00:00Z`.
pub(super) fn expiry(text: &str) -> Result<Expiry, String> {
    if text == "never" {
        return Ok(Expiry::Never);
    }
    let otherwise = |_| "write never, a number with s, m, h or d (180d), or a time (2027-01-31T12:00:00Z)".to_owned();
    seconds(text).map(Expiry::After).or_else(|_| text.parse().map(Expiry::At)).map_err(otherwise)
}

/// How long something lives; none is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime(pub(super) Option<Duration>);

/// Reads `never` or a span.
pub(super) fn lifetime(text: &str) -> Result<Lifetime, String> {
    match text {
        "never" => Ok(Lifetime(None)),
        _ => seconds(text).map(|seconds| Lifetime(Some(Duration::from_secs(seconds)))),
    }
}

/// Reads a time such as `90s`, `30m`, `1h` or `7d`.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let unit = |unit: char| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(24 * 3600),
        _ => None,
    };
    let split = text.chars().next_back().and_then(unit).and_then(|unit| Some((text.get(..text.len() - 1)?, unit)));
    let seconds: Option<u64> = split.and_then(|(number, unit)| number.parse::<u64>().ok()?.checked_mul(unit));
    seconds.filter(|seconds| *seconds > 0).ok_or_else(|| "write a number with s, m, h or d, such as 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_a_number_and_a_unit() {
        assert_eq!((seconds("90s"), seconds("1h"), seconds("7d")), (Ok(90), Ok(3600), Ok(604_800)));
        for wrong in ["", "h", "0h", "1", "1w", "-1h", "1é", "99999999999999999999d"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_expiry_is_never_a_span_or_a_time() {
        assert_eq!((expiry("never"), expiry("1d")), (Ok(Expiry::Never), Ok(Expiry::After(86_400))));
        assert_eq!(expiry("2027-01-31T12:00:00Z"), Ok(Expiry::At("2027-01-31T12:00:00Z".parse().unwrap())));
        assert!(expiry("soon").unwrap_err().contains("180d") && expiry("").is_err());
    }
}
