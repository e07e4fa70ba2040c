//! DNS messages as the resolver reads them, from programs and from other servers.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pvemesh::names::{Host, MAX_MESSAGE, Records, Table, Verdict, answer, failed, fitted, is_reply_to, refused};

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    Table::new(Records {
        suffix: "mesh.test".to_owned(),
        hosts: vec![Host { name: "nas.mesh.test".to_owned(), addresses: vec!["100.64.0.1".parse().unwrap()], subdomains: true }],
        extra: vec![("*.apps.lan".to_owned(), "192.168.1.8".parse().unwrap())],
        ..Records::default()
    })
});

fuzz_target!(|data: &[u8]| {
    // Nobody answers an answer.
    if let Verdict::Reply(reply) = answer(&TABLE, data) {
        assert_eq!(answer(&TABLE, &reply), Verdict::Drop);
        assert!(fitted(reply, data).len() <= MAX_MESSAGE);
    }
    let _ = (failed(data), refused(data));
    if let Some((question, reply)) = data.split_at_checked(data.len() / 2) {
        assert!(!is_reply_to(question, question) || question.get(2).is_some_and(|flags| flags & 0x80 != 0));
        if is_reply_to(reply, question) {
            assert!(fitted(reply.to_vec(), question).len() <= MAX_MESSAGE);
        }
    }
});
