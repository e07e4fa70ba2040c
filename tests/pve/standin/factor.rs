//! Second factors: TOTP codes that count once, recovery keys, and the lock after too many wrong codes (proxmox-tfa).

use std::collections::BTreeSet;

/// Wrong TOTP codes after which TOTP is locked.
const WRONG_CODES: u32 = 8;

/// What a user may answer a challenge with.
#[derive(Debug, Default)]
pub struct Factors {
    /// Codes that are right now; each is taken once.
    codes: BTreeSet<String>,
    recovery: BTreeSet<String>,
    wrong: u32,
}

impl Factors {
    /// TOTP codes and recovery keys that are right.
    pub fn new(codes: &[&str], recovery: &[&str]) -> Self {
        let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        Self { codes: owned(codes), recovery: owned(recovery), wrong: 0 }
    }

    /// How many wrong codes there were since the last right answer.
    pub fn wrong(&self) -> u32 {
        self.wrong
    }

    fn locked(&self) -> bool {
        self.wrong >= WRONG_CODES
    }

    /// The challenge in a half ticket, percent-encoded as in `PVE:!tfa!...`.
    pub fn challenge(&self) -> String {
        let mut challenge = serde_json::json!({ "totp": !self.locked() });
        if !self.recovery.is_empty() {
            challenge["recovery"] = serde_json::json!("high");
        }
        challenge.to_string().bytes().fold(String::new(), |mut text, byte| {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => text.push(char::from(byte)),
                other => text.push_str(&format!("%{other:02X}")),
            }
            text
        })
    }

    /// Whether `kind:code` is right; a locked TOTP takes none.
    pub fn takes(&mut self, answer: &str) -> bool {
        match answer.split_once(':') {
            Some(("totp", code)) if !self.locked() && self.codes.remove(code) => {
                self.wrong = 0;
                true
            }
            Some(("totp", _)) => {
                self.wrong += 1;
                false
            }
            Some(("recovery", key)) if self.recovery.remove(key) => {
                self.wrong = 0;
                true
            }
            _ => false,
        }
    }
}
