//! Addresses of names, for programs in this process.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};

use super::Shared;
use crate::sys::entropy;

/// The resolver, as far as it is asked for addresses. Clones are the same.
#[derive(Debug, Clone)]
pub(in crate::sys) struct Lookup(pub(super) Arc<Shared>);

impl Lookup {
    /// What a name means, IPv4 first: one of a single label in the mesh first, as a search domain would have it. Empty if nothing.
    pub(in crate::sys) async fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let name = name.trim_end_matches('.');
        let suffix = self.0.known().0.suffix().to_owned();
        if !name.contains('.') && !suffix.is_empty() {
            let found = self.of(&format!("{name}.{suffix}.")).await;
            if !found.is_empty() {
                return found;
            }
        }
        self.of(&format!("{name}.")).await
    }

    async fn of(&self, name: &str) -> Vec<IpAddr> {
        let Ok(name) = Name::from_ascii(name) else { return Vec::new() };
        let (v4, v6) = tokio::join!(self.ask(&name, RecordType::A), self.ask(&name, RecordType::AAAA));
        v4.into_iter().chain(v6).flatten().collect()
    }

    async fn ask(&self, name: &Name, kind: RecordType) -> Option<Vec<IpAddr>> {
        let number = entropy::bytes().map(u16::from_be_bytes).ok()?;
        let mut question = Message::new(number, MessageType::Query, OpCode::Query);
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(name.clone(), kind));
        let reply = self.0.reply(&question.to_vec().ok()?, false).await?;
        let answers = Message::from_vec(&reply).ok()?.answers;
        let address = |data: &RData| match data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        };
        Some(answers.iter().filter_map(|record| address(&record.data)).collect())
    }
}
