//! Names and DNS messages as nobody should send them, and more names than anybody has.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use pvemesh::names::{Found, Host, MAX_MESSAGE, Records, Table, Upstream, Verdict, Want, answer, failed, fitted, is_reply_to, refused};

/// No message takes longer, in a program that is built without optimisation on a busy machine.
const SOON: Duration = Duration::from_secs(2);

fn table() -> Table {
    Table::new(Records {
        suffix: "mesh.test".to_owned(),
        hosts: vec![Host { name: "nas.mesh.test".to_owned(), addresses: vec!["100.64.0.1".parse().unwrap()], subdomains: true }],
        extra: vec![("*.apps.lan".to_owned(), "192.168.1.8".parse().unwrap())],
        resolvers: vec![Upstream::read("9.9.9.9").unwrap()],
        ..Records::default()
    })
}

fn question_for(name: Name, kind: RecordType, edns: bool) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    message.edns = edns.then(|| {
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        edns
    });
    message.to_vec().unwrap()
}

fn question(name: &str) -> Vec<u8> {
    question_for(Name::from_ascii(name).unwrap(), RecordType::A, true)
}

fn header(id: u16, flags: u16, counts: [u16; 4]) -> Vec<u8> {
    [id, flags].into_iter().chain(counts).flat_map(u16::to_be_bytes).collect()
}

/// Everything that is done with a message, and in time.
fn stood(message: &[u8]) -> Verdict {
    let start = Instant::now();
    let verdict = answer(&table(), message);
    let asked = question("example.com.");
    black_box((is_reply_to(message, message), is_reply_to(message, &asked), failed(message), refused(message)));
    for reply in [fitted(message.to_vec(), message), fitted(message.to_vec(), &asked), fitted(vec![0; 5000], message)] {
        assert!(reply.len() <= MAX_MESSAGE, "{} bytes", reply.len());
    }
    assert!(start.elapsed() < SOON, "{:?} for {} bytes", start.elapsed(), message.len());
    if let Verdict::Reply(reply) = &verdict {
        let reply = Message::from_vec(reply).expect("a reply of ours reads");
        assert_eq!(reply.metadata.message_type, MessageType::Response);
    }
    verdict
}

fn code(verdict: &Verdict) -> Option<ResponseCode> {
    match verdict {
        Verdict::Reply(reply) => Some(Message::from_vec(reply).unwrap().metadata.response_code),
        _ => None,
    }
}

#[test]
fn pointers_that_lead_in_circles_or_nowhere_end_in_a_refusal() {
    let tail = [0, 1, 0, 1];
    for (name, what) in [
        (&[0xc0, 12][..], "to itself"),
        (&[0xc0, 14, 0xc0, 12], "to each other"),
        (&[0xc0, 200], "past the end"),
        (&[0xc0, 14, 0], "forwards"),
        (&[1, b'a', 0xc0, 12], "to its own beginning"),
        (&[0xc0], "half"),
        (&[0x40, 0], "a kind that does not exist"),
        (&[0x80, 0], "another such kind"),
        (&[63, 1, 2], "a label that is cut"),
    ] {
        let message = [header(1, 0x0100, [1, 0, 0, 0]), name.to_vec(), tail.to_vec()].concat();
        assert_eq!(code(&stood(&message)), Some(ResponseCode::FormErr), "{what}");
        // The same as a record of a reply.
        let asked = question_for(Name::from_ascii("example.com.").unwrap(), RecordType::A, false);
        let reply =
            [header(0x1234, 0x8180, [1, 1, 0, 0]), asked[12..].to_vec(), name.to_vec(), vec![0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 1, 2, 3, 4]];
        stood(&reply.concat());
    }
    // The header itself as a name.
    stood(&[header(0xc000, 0x0100, [1, 0, 0, 0]), vec![0xc0, 0, 0, 1, 0, 1]].concat());
}

/// Names that unfold to much more than was sent, as many as fit.
#[test]
fn messages_that_unfold_to_thousands_of_long_names_cost_neither_time_nor_memory() {
    let long: Vec<u8> = (0..3).flat_map(|_| [&[63][..], &[b'x'; 63]].concat()).chain([0]).collect();
    for flags in [0x0100, 0x8180] {
        // Questions.
        let one = [long.clone(), vec![0, 1, 0, 1]].concat();
        let rest = (MAX_MESSAGE - 12 - one.len()) / 6;
        let mut message = header(1, flags, [u16::try_from(rest + 1).unwrap(), 0, 0, 0]);
        message.extend(one);
        message.extend([0xc0, 12, 0, 1, 0, 1].repeat(rest));
        stood(&message);
        // Records whose data is a name, in a reply of the greatest length.
        let record = [0xc0, 12, 0, 2, 0, 1, 0, 0, 0, 5, 0, 2, 0xc0, 12];
        let room = (65_535 - 12 - long.len() - 4) / record.len();
        let mut message = header(1, flags, [1, u16::try_from(room).unwrap(), 0, 0]);
        message.extend([long.clone(), vec![0, 1, 0, 1], record.repeat(room)].concat());
        stood(&message);
        // A chain: each name is a label and a pointer to the one before.
        let mut message = header(1, flags, [1, 0, 0, 0]);
        let mut last = 12;
        message.extend([1, b'a', 0]);
        while message.len() < MAX_MESSAGE - 10 {
            let here = message.len();
            message.extend([1, b'a', 0xc0 | u8::try_from(last >> 8).unwrap(), u8::try_from(last & 0xff).unwrap()]);
            last = here;
        }
        message.extend([0, 1, 0, 1]);
        stood(&message);
        // Counts without anything behind them.
        stood(&header(1, flags, [u16::MAX; 4]));
    }
}

#[test]
fn a_message_that_is_cut_anywhere_is_a_refusal_and_never_a_reply() {
    let asked = question("nas.mesh.test.");
    for length in 0..asked.len() {
        match stood(&asked[..length]) {
            Verdict::Drop => assert!(length < 12),
            cut => assert_eq!(code(&cut), Some(ResponseCode::FormErr), "{length} bytes"),
        }
    }
    assert_eq!(code(&stood(&asked)), Some(ResponseCode::NoError));
    let mut reply = Message::from_vec(&question("example.com.")).unwrap();
    reply.metadata.message_type = MessageType::Response;
    let name = Name::from_ascii("example.com.").unwrap();
    reply.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A([192, 0, 2, 7].into()))));
    reply.add_answer(Record::from_rdata(name, 60, RData::TXT(TXT::new(vec!["text".to_owned()]))));
    let reply = reply.to_vec().unwrap();
    let asked = question("example.com.");
    for length in 0..reply.len() {
        assert!(!is_reply_to(&reply[..length], &asked), "{length} bytes");
    }
    assert!(is_reply_to(&reply, &asked) && is_reply_to(&reply, &question("EXAMPLE.com.")));
    assert!(!is_reply_to(&reply, &question("example.org.")));
}

/// A record that this program does not understand is not its business.
#[test]
fn a_reply_with_records_that_do_not_read_is_a_reply_all_the_same() {
    let asked = question_for(Name::from_ascii("example.com.").unwrap(), RecordType::A, false);
    // An address of three bytes, and a type that nobody knows.
    let records = [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 3, 1, 2, 3][..], &[0xc0, 12, 0xfe, 0xdc, 0, 1, 0, 0, 0, 5, 0, 1, 9]].concat();
    let reply = [header(0x1234, 0x8180, [1, 2, 0, 0]), asked[12..].to_vec(), records].concat();
    assert!(is_reply_to(&reply, &asked));
    // One that is too long for a datagram is cut, with its code.
    let long =
        [header(0x1234, 0x8183, [1, 1, 0, 0]), asked[12..].to_vec(), vec![0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 5, 8, 0], vec![1; 2048]].concat();
    assert!(is_reply_to(&long, &asked));
    let cut = Message::from_vec(&fitted(long, &asked)).unwrap();
    assert_eq!((cut.metadata.id, cut.metadata.truncation, cut.metadata.authoritative), (0x1234, true, false));
    assert_eq!((cut.metadata.response_code, cut.queries.len(), cut.answers.len()), (ResponseCode::NXDomain, 1, 0));
}

#[test]
fn names_with_odd_characters_are_theirs_whom_they_belong_to() {
    let name = |labels: &[&[u8]]| Name::from_labels(labels.iter().copied()).unwrap();
    let verdict = |labels: &[&[u8]]| stood(&question_for(name(labels), RecordType::A, false));
    let elsewhere = Verdict::Ask(vec![Upstream::read("9.9.9.9").unwrap()]);
    // A dot within a label is none between two.
    assert_eq!(verdict(&[b"nas.mesh.test"]), elsewhere);
    assert_eq!(code(&verdict(&[b"nas", b"mesh", b"test"])), Some(ResponseCode::NoError));
    // As long as a label may be, of characters that are written as four each, as services are named (RFC 6763, section 4.1.1).
    assert_eq!(verdict(&["ü".repeat(31).as_bytes(), b"_ipp", b"_tcp", b"example"]), elsewhere);
    assert_eq!(verdict(&[b"Printer of the second floor, the one beside the window", b"_ipp", b"_tcp", b"example"]), elsewhere);
    for odd in [&b"\0"[..], b"\xff", b" ", b"\\", b"\"", b"$(reboot)", b"*", b"_", b"-", b"a\nb", "😀".as_bytes()] {
        assert_eq!(verdict(&[odd, b"example"]), elsewhere, "{odd:?}");
        assert_eq!(code(&verdict(&[odd, b"mesh", b"test"])), Some(ResponseCode::NXDomain), "{odd:?}");
        // Names below a node, and below a star, have its addresses whatever they are.
        assert_eq!(code(&verdict(&[odd, b"nas", b"mesh", b"test"])), Some(ResponseCode::NoError), "{odd:?}");
    }
    let many: Vec<&[u8]> = vec![b"a"; 124];
    assert_eq!(verdict(&[&many[..], &[b"xy"]].concat()), elsewhere);
}

#[test]
fn a_hundred_thousand_names_are_looked_up_in_microseconds() {
    const COUNT: u32 = 100_000;
    let address = |n: u32| IpAddr::from((0x6440_0000 + n).to_be_bytes());
    let hosts = (0..COUNT / 2).map(|n| Host { name: format!("node-{n}.mesh.test."), addresses: vec![address(n)], subdomains: n % 2 == 0 });
    let extra = (COUNT / 2..COUNT).map(|n| (format!("record-{n}.mesh.test"), address(n)));
    let records = Records { suffix: "mesh.test".to_owned(), hosts: hosts.collect(), extra: extra.collect(), ..Records::default() };
    let start = Instant::now();
    let table = Table::new(records);
    let built = start.elapsed();
    let start = Instant::now();
    let mut asked = 0;
    for n in (0..COUNT).step_by(7) {
        let name = if n < COUNT / 2 { format!("Node-{n}.mesh.test") } else { format!("record-{n}.mesh.test.") };
        assert_eq!(table.look_up(&name, Want::A), Found::Addresses(vec![address(n)]), "{name}");
        assert_eq!(
            table.look_up(&pvemesh::ident::reverse_name(address(n)), Want::Ptr),
            Found::Name(name.to_lowercase().trim_end_matches('.'))
        );
        assert_eq!(table.look_up(&format!("a.b.c.nobody-{n}.mesh.test"), Want::A), Found::NoSuchName);
        asked += 3;
    }
    let each = start.elapsed() / asked;
    println!("{COUNT} names: built in {built:?}, {each:?} for each of {asked} names");
    assert!(built < Duration::from_secs(5) && each < Duration::from_micros(100), "{built:?}, {each:?}");
}
