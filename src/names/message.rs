//! DNS messages: questions read, replies written.

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::layout;
use super::{Found, NEGATIVE_TTL, TTL, Table, Upstream, Want};

/// The longest question that is read, and the longest datagram that is sent.
pub const MAX_MESSAGE: usize = 4096;
/// What fits into a datagram for who says nothing of it (RFC 1035, section 4.2.1).
const PLAIN_SIZE: u16 = 512;
/// What we say that we take.
const OWN_SIZE: u16 = 4095;
pub(super) const HEADER: usize = 12;

/// What becomes of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This is the reply.
    Reply(Vec<u8>),
    /// These are to be asked; the machine's own servers if there are none.
    Ask(Vec<Upstream>),
    /// Nothing: it is no question.
    Drop,
}

fn want(kind: RecordType) -> Want {
    match kind {
        RecordType::A => Want::A,
        RecordType::AAAA => Want::Aaaa,
        RecordType::PTR => Want::Ptr,
        RecordType::ANY => Want::Any,
        RecordType::NS | RecordType::SOA | RecordType::AXFR | RecordType::IXFR | RecordType::HINFO => Want::Zone,
        _ => Want::Other,
    }
}

/// Answers a question from a table.
pub fn answer(table: &Table, question: &[u8]) -> Verdict {
    if question.len() > MAX_MESSAGE || question.len() < HEADER || is_response(question) {
        return Verdict::Drop;
    }
    let Ok(message) = Message::from_vec(question) else { return Verdict::Reply(refusal(question, ResponseCode::FormErr)) };
    if message.metadata.op_code != OpCode::Query {
        return Verdict::Reply(refusal(question, ResponseCode::NotImp));
    }
    let [query] = message.queries.as_slice() else { return Verdict::Reply(refusal(question, ResponseCode::FormErr)) };
    if query.query_class() != DNSClass::IN {
        return Verdict::Reply(refusal(question, ResponseCode::Refused));
    }
    let name = query.name();
    let record = |data| Record::from_rdata(name.clone(), seconds(TTL), data);
    let mut reply = reply_to(&message);
    match table.look_up(&name.to_ascii(), want(query.query_type())) {
        Found::Elsewhere(servers) => return Verdict::Ask(servers.to_vec()),
        Found::Addresses(addresses) => reply.answers.extend(addresses.into_iter().map(|address| {
            record(match address {
                std::net::IpAddr::V4(v4) => RData::A(A(v4)),
                std::net::IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
            })
        })),
        Found::Name(known) => match Name::from_ascii(format!("{known}.")) {
            Ok(known) => reply.answers.push(record(RData::PTR(PTR(known)))),
            Err(_) => reply.metadata.response_code = ResponseCode::ServFail,
        },
        Found::NoData | Found::Hidden => reply.authorities.push(authority(table)),
        Found::NoSuchName => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.authorities.push(authority(table));
        }
        Found::NotImplemented => reply.metadata.response_code = ResponseCode::NotImp,
    }
    Verdict::Reply(reply.to_vec().unwrap_or_else(|_| refusal(question, ResponseCode::ServFail)))
}

fn seconds(time: std::time::Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

fn is_response(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x80 != 0)
}

/// The head of a reply of our own.
fn reply_to(message: &Message) -> Message {
    let mut reply = Message::response(message.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    reply.queries.clone_from(&message.queries);
    if message.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(OWN_SIZE);
        reply.edns = Some(edns);
    }
    reply
}

/// Says how long it may be kept that there is nothing (RFC 2308).
fn authority(table: &Table) -> Record {
    let zone = Name::from_ascii(format!("{}.", table.suffix())).unwrap_or_else(|_| Name::root());
    let ttl = seconds(NEGATIVE_TTL);
    let soa = SOA::new(zone.clone(), zone.clone(), 1, 3600, 600, 86_400, ttl);
    Record::from_rdata(zone, ttl, RData::SOA(soa))
}

/// A reply without contents, made from the question's bytes so that it can be made of anything: header, and the question if it reads and is one.
fn refusal(question: &[u8], code: ResponseCode) -> Vec<u8> {
    let id = question.first_chunk::<2>().copied().map_or(0, u16::from_be_bytes);
    let mut reply = Message::error_msg(id, OpCode::Query, code);
    reply.metadata.recursion_available = true;
    if let Ok(message) = Message::from_vec(question) {
        reply.metadata.recursion_desired = message.metadata.recursion_desired;
        // Many of them may unfold to more than a message holds.
        if message.queries.len() == 1 {
            reply.queries = message.queries;
        }
    }
    reply.to_vec().unwrap_or_default()
}

/// The reply to a question that nobody has answered.
pub fn failed(question: &[u8]) -> Vec<u8> {
    refusal(question, ResponseCode::ServFail)
}

/// The reply to a question that is not answered here (RFC 1035, code 5).
pub fn refused(question: &[u8]) -> Vec<u8> {
    refusal(question, ResponseCode::Refused)
}

/// A message with another number.
pub fn with_id(message: &[u8], id: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    if let Some(head) = message.first_chunk_mut::<2>() {
        *head = id.to_be_bytes();
    }
    message
}

/// Whether a message from a server is a reply to a question, and whole: the same number, the same question. Both carry the number that the
/// server was asked with.
pub fn is_reply_to(reply: &[u8], question: &[u8]) -> bool {
    if !is_response(reply) || reply.first_chunk::<2>() != question.first_chunk::<2>() || !layout::is_whole(reply) {
        return false;
    }
    match (layout::question(reply), layout::question(question)) {
        // Lengths of labels are no letters.
        (Some(replied), Some(asked)) => replied.eq_ignore_ascii_case(asked),
        _ => false,
    }
}

/// A reply as it fits into a datagram for who asked: if it is too long, cut down to what says so, so that the question comes again by TCP.
pub fn fitted(reply: Vec<u8>, question: &[u8]) -> Vec<u8> {
    let asked = Message::from_vec(question).ok();
    let edns = asked.as_ref().and_then(|message| message.edns.as_ref());
    let size = edns.map_or(PLAIN_SIZE, |edns| edns.max_payload().max(PLAIN_SIZE));
    if reply.len() <= usize::from(size).min(MAX_MESSAGE) {
        return reply;
    }
    let Some(asked) = asked else { return failed(question) };
    let mut cut = reply_to(&asked);
    let flag = |byte: usize, flag: u8| reply.get(byte).is_some_and(|flags| flags & flag != 0);
    (cut.metadata.truncation, cut.metadata.authoritative) = (true, flag(2, 0x04));
    cut.metadata.response_code = ResponseCode::from(0, reply.get(3).copied().unwrap_or_default() & 0x0f);
    cut.to_vec().unwrap_or_else(|_| failed(question))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use hickory_proto::op::{MessageType, Query};
    use proptest::prelude::*;

    use super::super::{Host, Records};
    use super::*;

    fn table() -> Table {
        Table::new(Records {
            suffix: "mesh.test".to_owned(),
            hosts: vec![Host { name: "nas.mesh.test".to_owned(), addresses: vec!["100.64.0.1".parse().unwrap()], subdomains: false }],
            ..Records::default()
        })
    }

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn replied(question: &[u8]) -> Message {
        match answer(&table(), question) {
            Verdict::Reply(reply) => Message::from_vec(&reply).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_nodes_name_is_answered_with_authority_and_a_short_life() {
        let reply = replied(&question("NAS.mesh.test.", RecordType::A));
        assert_eq!((reply.metadata.id, reply.metadata.authoritative, reply.metadata.recursion_available), (0x1234, true, true));
        assert_eq!(reply.answers[0].data, RData::A(A("100.64.0.1".parse().unwrap())));
        assert_eq!(reply.answers[0].ttl, 5);
        assert_eq!(reply.queries[0].name().to_ascii(), "NAS.mesh.test.", "spelled as it was asked");
    }

    #[test]
    fn a_name_that_does_not_exist_and_one_without_data_are_told_apart() {
        let ghost = replied(&question("ghost.mesh.test.", RecordType::A));
        assert_eq!((ghost.metadata.response_code, ghost.authorities.len()), (ResponseCode::NXDomain, 1));
        let nothing = replied(&question("nas.mesh.test.", RecordType::MX));
        assert_eq!((nothing.metadata.response_code, nothing.answers.len(), nothing.authorities.len()), (ResponseCode::NoError, 0, 1));
        let zone = replied(&question("nas.mesh.test.", RecordType::NS));
        assert_eq!(zone.metadata.response_code, ResponseCode::NotImp);
        let reverse = replied(&question("1.0.64.100.in-addr.arpa.", RecordType::PTR));
        assert_eq!(reverse.answers[0].data, RData::PTR(PTR(Name::from_ascii("nas.mesh.test.").unwrap())));
        assert_eq!(answer(&table(), &question("example.com.", RecordType::A)), Verdict::Ask(Vec::new()));
    }

    #[test]
    fn what_is_no_question_gets_no_answer_and_what_is_a_wrong_one_a_refusal() {
        let right = question("nas.mesh.test.", RecordType::A);
        let mut response = right.clone();
        response[2] |= 0x80;
        assert_eq!(answer(&table(), &response), Verdict::Drop, "two servers that answer each other's answers never stop");
        assert_eq!(answer(&table(), &right[..11]), Verdict::Drop);
        let cut = replied(&right[..right.len() - 3]);
        assert_eq!((cut.metadata.id, cut.metadata.response_code), (0x1234, ResponseCode::FormErr));
        let mut two = Message::from_vec(&right).unwrap();
        two.add_query(two.queries[0].clone());
        assert_eq!(replied(&two.to_vec().unwrap()).metadata.response_code, ResponseCode::FormErr);
    }

    #[test]
    fn a_reply_too_long_for_a_datagram_is_cut_and_says_so() {
        let asked = question("nas.mesh.test.", RecordType::A);
        let mut long = Message::from_vec(&asked).unwrap();
        long.metadata.message_type = MessageType::Response;
        for n in 0..100 {
            let address = A([10, 0, 0, n].into());
            long.add_answer(Record::from_rdata(Name::from_ascii("nas.mesh.test.").unwrap(), 5, RData::A(address)));
        }
        let bytes = long.to_vec().unwrap();
        let cut = Message::from_vec(&fitted(bytes.clone(), &asked)).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let mut with_room = Message::from_vec(&asked).unwrap();
        with_room.edns = Some({
            let mut edns = Edns::new();
            edns.set_max_payload(4096);
            edns
        });
        assert_eq!(fitted(bytes.clone(), &with_room.to_vec().unwrap()), bytes);
    }

    #[test]
    fn only_the_reply_to_the_very_question_counts() {
        let asked = question("example.com.", RecordType::A);
        let mut reply = Message::from_vec(&asked).unwrap();
        reply.metadata.message_type = MessageType::Response;
        let bytes = reply.to_vec().unwrap();
        assert!(is_reply_to(&bytes, &asked) && !is_reply_to(&asked, &asked));
        assert!(!is_reply_to(&with_id(&bytes, 7), &asked));
        assert!(!is_reply_to(&bytes, &question("example.org.", RecordType::A)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = answer(&table(), &bytes);
            let _ = (is_reply_to(&bytes, &bytes), fitted(bytes.clone(), &bytes), failed(&bytes));
        }
    }
}
