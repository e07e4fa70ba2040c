use proptest::prelude::*;
use pvemesh::wire::control::frame::*;

proptest! {
    #[test]
    fn messages_survive_any_cutting(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..8),
        cut in 1usize..64,
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
        let mut deframer = Deframer::default();
        let mut read = Vec::new();
        for piece in stream.chunks(cut) {
            deframer.push(piece);
            while let Some(message) = deframer.next_message().unwrap() {
                read.push(message);
            }
        }
        prop_assert_eq!(read, messages);
        prop_assert!(!deframer.is_midway());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut deframer = Deframer::default();
        deframer.push(&bytes);
        while let Ok(Some(_)) = deframer.next_message() {}
    }
}

#[test]
fn impossible_lengths_are_refused_before_anything_is_reserved() {
    for (bytes, error) in [([0, 0, 0, 0], FrameError::Empty), ([255, 255, 255, 255], FrameError::TooLong(u32::MAX))] {
        let mut deframer = Deframer::default();
        deframer.push(&bytes);
        assert_eq!(deframer.next_message(), Err(error));
    }
    let mut deframer = Deframer::default();
    deframer.push(&u32::try_from(MAX_MESSAGE).unwrap().to_le_bytes());
    assert_eq!(deframer.next_message(), Ok(None));
    assert!(deframer.is_midway());
    assert_eq!(encode(&[]), Err(FrameError::Empty));
}
