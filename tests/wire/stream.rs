use std::io::ErrorKind;

use pvemesh::ident::MachinePrivate;
use pvemesh::sys::noise_stream::NoiseStream;
use pvemesh::wire::control::noise::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

fn keys() -> (Keys, Keys) {
    let (client, server) = (MachinePrivate::from_seed([1; 32]), MachinePrivate::from_seed([2; 32]));
    let initiator = Initiator::new([3; 32], &server.public(), &client, 130).unwrap();
    let accepted = Responder::accept([4; 32], &server, initiator.message()).unwrap();
    (initiator.finish(&accepted.response).unwrap(), accepted.keys)
}

/// Two ends over a pipe that holds only `room` bytes, so that records are cut anywhere.
fn pair(room: usize) -> (NoiseStream<DuplexStream>, NoiseStream<DuplexStream>) {
    let (a, b) = tokio::io::duplex(room);
    let (client, server) = keys();
    (NoiseStream::new(a, client, &[]), NoiseStream::new(b, server, &[]))
}

#[tokio::test]
async fn trap_03_records_are_cut_and_joined_anywhere_in_both_directions() {
    for room in [1, 7, 4096, 1 << 20] {
        let (mut client, mut server) = pair(room);
        let data: Vec<u8> = (0..20_000u32).flat_map(u32::to_le_bytes).collect();
        let sent = data.clone();
        let sender = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.flush().await.unwrap();
            let mut echo = [0; 5];
            client.read_exact(&mut echo).await.unwrap();
            client.shutdown().await.unwrap();
            echo
        });
        let mut received = vec![0; data.len()];
        server.read_exact(&mut received).await.unwrap();
        assert!(received == data, "with room for {room}");
        server.write_all(b"done.").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(&sender.await.unwrap(), b"done.");
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0, "a clean end is an end");
    }
}

#[tokio::test]
async fn parts_written_together_make_one_record_and_long_ones_lose_nothing() {
    let (a, mut b) = tokio::io::duplex(1 << 20);
    let (client, mut server) = keys();
    let mut client = NoiseStream::new(a, client, &[]);
    let count = client.write_vectored(&[std::io::IoSlice::new(b"head "), std::io::IoSlice::new(b"and payload")]).await.unwrap();
    client.flush().await.unwrap();
    let mut record = [0; HEADER_LEN + 16 + 16];
    b.read_exact(&mut record).await.unwrap();
    assert_eq!((count, server.opener.open(&mut record[HEADER_LEN..]).unwrap()), (16, &b"head and payload"[..]));
    // More than one write takes: what was not taken is offered again, as writers do.
    let (mut client, mut server) = pair(1 << 16);
    let data: Vec<u8> = (0..60_000u32).flat_map(u32::to_le_bytes).collect();
    let sent = data.clone();
    let sender = tokio::spawn(async move {
        let mut at = 0;
        while at < sent.len() {
            let (first, rest) = sent[at..].split_at((sent.len() - at).min(9));
            at += client.write_vectored(&[std::io::IoSlice::new(first), std::io::IoSlice::new(rest)]).await.unwrap();
        }
        client.flush().await.unwrap();
        client
    });
    let mut received = vec![0; data.len()];
    server.read_exact(&mut received).await.unwrap();
    assert!(received == data);
    drop(sender.await.unwrap());
}

#[tokio::test]
async fn bytes_read_with_the_handshake_are_not_lost() {
    let (a, _b) = tokio::io::duplex(64);
    let (client, mut server) = keys();
    let mut records = Vec::new();
    server.sealer.seal(&vec![5; 40_000], &mut records).unwrap();
    let mut client = NoiseStream::new(a, client, &records);
    let mut received = vec![0; 40_000];
    client.read_exact(&mut received).await.unwrap();
    assert!(received.iter().all(|b| *b == 5));
}

#[tokio::test]
async fn garbage_and_cut_records_end_the_stream() {
    let garbage = [vec![4, 0, 32], vec![0xaa; 32]].concat();
    for (bytes, kind) in [
        (garbage, ErrorKind::InvalidData),
        (vec![4, 0xff, 0xff, 0, 0], ErrorKind::InvalidData),
        (vec![0x47; 65_536], ErrorKind::InvalidData),
        (vec![4, 0, 32, 1, 2], ErrorKind::UnexpectedEof),
    ] {
        let (a, mut b) = tokio::io::duplex(1 << 17);
        let mut client = NoiseStream::new(a, keys().0, &[]);
        b.write_all(&bytes).await.unwrap();
        drop(b);
        assert_eq!(client.read(&mut [0; 64]).await.unwrap_err().kind(), kind);
    }
}
