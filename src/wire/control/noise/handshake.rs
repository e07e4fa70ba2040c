//! The handshake: one message each way, IK, so the client's static key travels sealed in the first.
//!
//! The randomness each side needs is one ephemeral key; it is made from the seed given by the caller and used once.

use std::fmt;

use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::{Zeroize as _, Zeroizing};

use super::record::{Opener, Sealer};
use crate::ident::{MachinePrivate, MachinePublic};

/// Bytes of the client's message.
pub const INITIATION_LEN: usize = 101;
/// Bytes of the server's message.
pub const RESPONSE_LEN: usize = 51;
/// Bytes of the header that tells how long the server's answer is.
pub const RESPONSE_HEADER_LEN: usize = 3;

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
const TYPE_INITIATION: u8 = 1;
const TYPE_RESPONSE: u8 = 2;
const TYPE_ERROR: u8 = 3;
const INITIATION_BODY: u16 = 96;
const RESPONSE_BODY: u16 = 48;
/// An error text longer than this is not read.
const MAX_ERROR_LEN: usize = 1024;

/// Why a handshake failed. The connection is of no use afterwards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The message has another type or length than the protocol fixes.
    #[error("malformed handshake message")]
    Malformed,
    /// The message does not decrypt: the two sides do not agree on the server's key or the version.
    #[error("the handshake does not decrypt: the server has another key than the one expected, or the message was altered")]
    Rejected,
    /// The other side answered with an error text, which nothing authenticates.
    #[error("the server refused the handshake: {0}")]
    Refused(String),
}

/// What a finished handshake yields, from the point of view of one side.
pub struct Keys {
    /// Seals what this side sends.
    pub sealer: Sealer,
    /// Opens what this side receives.
    pub opener: Opener,
    /// The handshake hash: the same on both sides, and only there.
    pub channel: [u8; 32],
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

/// The client's side, between sending its message and reading the answer.
pub struct Initiator {
    state: snow::HandshakeState,
    message: [u8; INITIATION_LEN],
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initiator(..)")
    }
}

impl Initiator {
    /// Starts a handshake with the server of this key. `seed` is 32 fresh random bytes, `version` the capability version.
    ///
    /// # Errors
    /// `Rejected` if the server's key is one that no honest server has (a low-order point, such as zero).
    pub fn new(seed: [u8; 32], server: &MachinePublic, machine: &MachinePrivate, version: u16) -> Result<Self, HandshakeError> {
        let mut state = builder(seed)?
            .prologue(&prologue(version))
            .and_then(|b| b.local_private_key(machine.as_bytes()))
            .and_then(|b| b.remote_public_key(server.as_bytes()))
            .and_then(snow::Builder::build_initiator)
            .map_err(|_| HandshakeError::Rejected)?;
        let mut message = [0; INITIATION_LEN];
        let (header, body) = message.split_at_mut(5);
        let [v1, v2] = version.to_be_bytes();
        let [l1, l2] = INITIATION_BODY.to_be_bytes();
        header.copy_from_slice(&[v1, v2, TYPE_INITIATION, l1, l2]);
        let written = state.write_message(&[], body).map_err(|_| HandshakeError::Rejected)?;
        debug_assert_eq!(written, usize::from(INITIATION_BODY));
        Ok(Self { state, message })
    }

    /// The message to send.
    pub fn message(&self) -> &[u8; INITIATION_LEN] {
        &self.message
    }

    /// Reads the server's answer, header included (`response_len` tells its length).
    ///
    /// # Errors
    /// `Refused` with the server's text, `Malformed`, or `Rejected` if it does not decrypt.
    pub fn finish(mut self, response: &[u8]) -> Result<Keys, HandshakeError> {
        let (header, body) = response.split_first_chunk::<RESPONSE_HEADER_LEN>().ok_or(HandshakeError::Malformed)?;
        if body.len() + RESPONSE_HEADER_LEN != response_len(*header)? {
            return Err(HandshakeError::Malformed);
        }
        let [kind, ..] = *header;
        if kind == TYPE_ERROR {
            let text: String = String::from_utf8_lossy(body).escape_debug().take(200).collect();
            return Err(HandshakeError::Refused(text));
        }
        self.state.read_message(body, &mut []).map_err(|_| HandshakeError::Rejected)?;
        let (to_server, to_client) = split(&mut self.state);
        Ok(Keys { sealer: Sealer::new(&to_server), opener: Opener::new(&to_client), channel: channel(&self.state) })
    }
}

/// The length of the server's answer, its 3-byte header included.
///
/// # Errors
/// `Malformed` for a type that is neither response nor error, or a length the protocol does not allow.
pub fn response_len(header: [u8; RESPONSE_HEADER_LEN]) -> Result<usize, HandshakeError> {
    let [kind, high, low] = header;
    let body = u16::from_be_bytes([high, low]);
    match kind {
        TYPE_RESPONSE if body == RESPONSE_BODY => Ok(RESPONSE_LEN),
        TYPE_ERROR if usize::from(body) <= MAX_ERROR_LEN => Ok(RESPONSE_HEADER_LEN + usize::from(body)),
        _ => Err(HandshakeError::Malformed),
    }
}

/// What the server learns and answers.
#[derive(Debug)]
pub struct Accepted {
    /// The message to send back.
    pub response: [u8; RESPONSE_LEN],
    /// The keys of the server's side.
    pub keys: Keys,
    /// Who the client proved to be.
    pub machine: MachinePublic,
    /// The capability version the client named; both sides bound the handshake to it.
    pub version: u16,
}

/// The server's side.
#[derive(Debug)]
pub struct Responder;

impl Responder {
    /// Answers a client's message. `seed` is 32 fresh random bytes.
    ///
    /// Any version is accepted here; which ones are served is the caller's policy.
    ///
    /// # Errors
    /// `Malformed` for wrong sizes, `Rejected` if it does not decrypt with the server's key.
    pub fn accept(seed: [u8; 32], server: &MachinePrivate, message: &[u8]) -> Result<Accepted, HandshakeError> {
        let message: &[u8; INITIATION_LEN] = message.try_into().map_err(|_| HandshakeError::Malformed)?;
        let [v1, v2, kind, l1, l2, body @ ..] = message;
        if *kind != TYPE_INITIATION || u16::from_be_bytes([*l1, *l2]) != INITIATION_BODY {
            return Err(HandshakeError::Malformed);
        }
        let version = u16::from_be_bytes([*v1, *v2]);
        let mut state = builder(seed)?
            .prologue(&prologue(version))
            .and_then(|b| b.local_private_key(server.as_bytes()))
            .and_then(snow::Builder::build_responder)
            .map_err(|_| HandshakeError::Rejected)?;
        state.read_message(body, &mut []).map_err(|_| HandshakeError::Rejected)?;
        let machine = state.get_remote_static().and_then(|key| key.try_into().ok()).map(MachinePublic::from_bytes);
        let machine = machine.ok_or(HandshakeError::Rejected)?;

        let mut response = [0; RESPONSE_LEN];
        let (header, body) = response.split_at_mut(RESPONSE_HEADER_LEN);
        let [l1, l2] = RESPONSE_BODY.to_be_bytes();
        header.copy_from_slice(&[TYPE_RESPONSE, l1, l2]);
        let written = state.write_message(&[], body).map_err(|_| HandshakeError::Rejected)?;
        debug_assert_eq!(written, usize::from(RESPONSE_BODY));
        let (to_server, to_client) = split(&mut state);
        let keys = Keys { sealer: Sealer::new(&to_client), opener: Opener::new(&to_server), channel: channel(&state) };
        Ok(Accepted { response, keys, machine, version })
    }

    /// The bytes that refuse a handshake with a text for the user (cut to 200 bytes; nothing authenticates it).
    pub fn refusal(text: &str) -> Vec<u8> {
        let text: Vec<u8> = text.bytes().take(200).collect();
        let [l1, l2] = u16::try_from(text.len()).unwrap_or_default().to_be_bytes();
        let mut message = vec![TYPE_ERROR, l1, l2];
        message.extend(text);
        message
    }
}

fn prologue(version: u16) -> Vec<u8> {
    format!("Tailscale Control Protocol v{version}").into_bytes()
}

fn builder<'a>(seed: [u8; 32]) -> Result<snow::Builder<'a>, HandshakeError> {
    let params: NoiseParams = PATTERN.parse().map_err(|_| HandshakeError::Malformed)?;
    Ok(snow::Builder::with_resolver(params, Box::new(Seeded(Zeroizing::new(seed)))))
}

fn split(state: &mut snow::HandshakeState) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
    let (first, second) = state.dangerously_get_raw_split();
    (Zeroizing::new(first), Zeroizing::new(second))
}

fn channel(state: &snow::HandshakeState) -> [u8; 32] {
    state.get_handshake_hash().try_into().unwrap_or_default()
}

/// Gives snow its primitives: the ephemeral key comes from the seed, and Diffie-Hellman refuses low-order points, which snow's own does not.
struct Seeded(Zeroizing<[u8; 32]>);

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(Some(self.0.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::<X25519>::default() as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// Hands the seed out once; a second draw would repeat a key and is an error.
struct Once(Option<Zeroizing<[u8; 32]>>);

impl Random for Once {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let seed = self.0.take().ok_or(snow::Error::Rng)?;
        if dest.len() != seed.len() {
            return Err(snow::Error::Rng);
        }
        dest.copy_from_slice(&*seed);
        Ok(())
    }
}

#[derive(Default)]
struct X25519 {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl X25519 {
    fn install(&mut self, private: [u8; 32]) {
        let secret = x25519_dalek::StaticSecret::from(private);
        self.public = *x25519_dalek::PublicKey::from(&secret).as_bytes();
        self.private = Zeroizing::new(private);
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, privkey: &[u8]) {
        // snow checks the length before; a wrong one would leave the zero key, with which every agreement fails.
        let mut private = privkey.try_into().unwrap_or_default();
        self.install(private);
        private.zeroize();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut private = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(&mut *private)?;
        self.install(*private);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &*self.private
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let theirs: [u8; 32] = pubkey.get(..32).and_then(|key| key.try_into().ok()).ok_or(snow::Error::Dh)?;
        let shared = x25519_dalek::StaticSecret::from(*self.private).diffie_hellman(&theirs.into());
        if !shared.was_contributory() {
            return Err(snow::Error::Dh);
        }
        out.get_mut(..32).ok_or(snow::Error::Dh)?.copy_from_slice(shared.as_bytes());
        Ok(())
    }
}
