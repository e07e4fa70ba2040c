//! Messages as pieces of text, so that what many streams are sent is written, and compressed, once.
//!
//! The core says which pieces make a message and in what order; making bytes of them (text, compression, framing) is the caller's,
//! outside its lock. A shared piece keeps what was made of it as long as it is in use.

use std::sync::{Arc, OnceLock};

use crate::wire::control::MapResponse;

/// The text of a piece, not written out yet.
#[derive(Debug)]
pub(super) enum Text {
    /// A complete message: its head and the changed nodes.
    Whole { head: Box<MapResponse>, changed: Vec<Arc<str>> },
    /// The beginning of a message whose list of peers follows.
    Head(Box<MapResponse>),
    /// Some of the peers of a list; `first` says that nothing of the list comes before.
    Nodes { nodes: Vec<Arc<str>>, first: bool },
    /// The end of the list of peers, and of the message.
    End,
}

impl Text {
    fn write(&self, json: &mut Vec<u8>) -> serde_json::Result<()> {
        match self {
            Self::Whole { head, changed } => {
                write_head(head, json)?;
                // An empty list means "no peers" to one client and "unchanged" to another: it is never written.
                if !changed.is_empty() {
                    open_list(json, "PeersChanged");
                    write_nodes(changed, true, json);
                    json.push(b']');
                }
                json.push(b'}');
            }
            Self::Head(head) => {
                write_head(head, json)?;
                open_list(json, "Peers");
            }
            Self::Nodes { nodes, first } => write_nodes(nodes, *first, json),
            Self::End => json.extend_from_slice(b"]}"),
        }
        Ok(())
    }
}

/// A message without its closing brace.
fn write_head(head: &MapResponse, json: &mut Vec<u8>) -> serde_json::Result<()> {
    serde_json::to_writer(&mut *json, head)?;
    json.pop();
    Ok(())
}

fn open_list(json: &mut Vec<u8>, name: &str) {
    if json.last() != Some(&b'{') {
        json.push(b',');
    }
    json.push(b'"');
    json.extend_from_slice(name.as_bytes());
    json.extend_from_slice(b"\":[");
}

fn write_nodes(nodes: &[Arc<str>], mut first: bool, json: &mut Vec<u8>) {
    for node in nodes {
        if !std::mem::take(&mut first) {
            json.push(b',');
        }
        json.extend_from_slice(node.as_bytes());
    }
}

/// A piece of the messages of many streams.
#[derive(Debug)]
pub struct Shared {
    text: Text,
    made: [OnceLock<Arc<[u8]>>; 2],
}

impl Shared {
    pub(super) fn new(text: Text) -> Self {
        Self { text, made: Default::default() }
    }

    /// The piece as `make` writes its text. It is made once for each of two ways to write it (0 and 1) and kept.
    pub fn made(&self, way: usize, make: impl FnOnce(&[u8]) -> Vec<u8>) -> Arc<[u8]> {
        let fresh = || {
            let mut json = Vec::new();
            // Writing to memory does not fail, and the types hold nothing that JSON has no form for.
            let _ = self.text.write(&mut json);
            Arc::from(make(&json))
        };
        match self.made.get(way) {
            Some(kept) => kept.get_or_init(fresh).clone(),
            None => fresh(),
        }
    }
}

/// A piece of a message.
#[derive(Debug)]
pub enum Piece {
    /// For this stream only.
    Own(Own),
    /// For many.
    Shared(Arc<Shared>),
}

/// The text of a piece that only one stream is sent.
#[derive(Debug)]
pub struct Own(Text);

impl Own {
    /// The piece's text.
    ///
    /// # Errors
    /// Never for messages made here; the stream should end if it does.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = Vec::new();
        self.0.write(&mut json)?;
        Ok(json)
    }
}

/// A message of the map stream: its pieces' texts, one behind the other.
#[derive(Debug)]
pub struct Message {
    pieces: Vec<Piece>,
}

impl Message {
    pub(super) fn own(head: MapResponse, changed: Vec<Arc<str>>) -> Self {
        Self { pieces: vec![Piece::Own(Own(Text::Whole { head: Box::new(head), changed }))] }
    }

    pub(super) fn shared(whole: Arc<Shared>) -> Self {
        Self { pieces: vec![Piece::Shared(whole)] }
    }

    /// A message with a list of peers, which must not be empty.
    pub(super) fn list(head: MapResponse, peers: impl IntoIterator<Item = Piece>) -> Self {
        let mut pieces = vec![Piece::Own(Own(Text::Head(Box::new(head))))];
        pieces.extend(peers);
        pieces.push(Piece::Own(Own(Text::End)));
        Self { pieces }
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The JSON text.
    ///
    /// # Errors
    /// Never for messages made here; the stream should end if it does.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Own(own) => own.0.write(&mut json)?,
                Piece::Shared(shared) => shared.text.write(&mut json)?,
            }
        }
        Ok(json)
    }
}

impl Piece {
    pub(super) fn nodes(nodes: Vec<Arc<str>>, first: bool) -> Self {
        Self::Own(Own(Text::Nodes { nodes, first }))
    }
}
