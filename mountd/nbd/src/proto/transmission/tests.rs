use super::*;

/// Decodes a structured reply to a READ the way a client sees it: the bytes, and how many chunks.
fn apply(mut wire: &[u8], cookie: u64, offset: u64, len: usize) -> (Vec<u8>, usize) {
    let mut out = vec![0xa5; len];
    let mut covered = 0;
    let mut chunks = 0;
    loop {
        let start: &[u8; 16] = wire.first_chunk().expect("a chunk header");
        let ReplyStart::Chunk { flags, kind, cookie: own } = ReplyStart::decode(start).unwrap()
        else {
            panic!("not a chunk")
        };
        assert_eq!(own, cookie);
        let size = u32::from_be_bytes(wire[16..20].try_into().unwrap()) as usize;
        let payload = &wire[20..20 + size];
        wire = &wire[20 + size..];
        chunks += 1;
        if kind != chunk::NONE {
            let at = u64::from_be_bytes(payload[..8].try_into().unwrap()) - offset;
            let at = at as usize;
            assert_eq!(at, covered, "chunks in order, without gaps");
            match kind {
                chunk::OFFSET_DATA => {
                    out[at..at + size - 8].copy_from_slice(&payload[8..]);
                    covered += size - 8;
                }
                chunk::OFFSET_HOLE => {
                    let hole = u32::from_be_bytes(payload[8..12].try_into().unwrap()) as usize;
                    out[at..at + hole].fill(0);
                    covered += hole;
                }
                other => panic!("chunk type {other}"),
            }
        }
        if flags & chunk::FLAG_DONE != 0 {
            break;
        }
    }
    assert!(wire.is_empty(), "bytes behind the last chunk");
    assert_eq!(covered, len);
    (out, chunks)
}

fn reply(data: &[u8], offset: u64, one: bool) -> (Vec<u8>, usize, usize) {
    let mut buf = vec![0xee; DATA_CHUNK_HEAD_BYTES];
    buf.extend_from_slice(data);
    let to = ReplyTo { extended: false, cookie: 42, offset };
    let end = encode_read_in_place(&mut buf, &to, one);
    let (out, chunks) = apply(&buf[..end], 42, offset, data.len());
    (out, chunks, end)
}

#[test]
fn reads_come_back_whatever_holes_they_have() {
    // Every pattern of eight pieces, at odd offsets and with odd tails.
    for pattern in 0..256u32 {
        for offset in [0, 512, 65536 * 3, 65536 * 3 + 4096, (1 << 40) + 65535] {
            for tail in [0, 1, 511, 512, 5000] {
                let mut data = Vec::new();
                for bit in 0..8 {
                    let fill = if pattern >> bit & 1 == 1 { 0x77 } else { 0 };
                    data.extend(std::iter::repeat_n(fill, 65536 / 8 * 3));
                }
                data.extend(std::iter::repeat_n(0u8, tail));
                let (out, _, end) = reply(&data, offset, false);
                assert!(out == data, "pattern {pattern:#x} offset {offset} tail {tail}");
                assert!(end <= data.len() + DATA_CHUNK_HEAD_BYTES);
                let (out, chunks, _) = reply(&data, offset, true);
                assert!(out == data && chunks == 1, "DF: one chunk");
            }
        }
    }
}

#[test]
fn zeros_are_not_sent() {
    let (_, chunks, end) = reply(&[0; 4096], 0, false);
    assert_eq!((chunks, end), (1, HOLE_CHUNK_BYTES));
    let mut data = vec![0; 1 << 20];
    data[(512 << 10) + 9] = 1;
    let (out, chunks, end) = reply(&data, 0, false);
    assert!(out == data);
    assert_eq!(chunks, 3, "hole, data, hole");
    assert!(end < 70_000, "{end}");
    let (_, chunks, end) = reply(&[0; 100], 0, false);
    assert_eq!((chunks, end), (1, DATA_CHUNK_HEAD_BYTES + 100), "too short for a hole");
    let (_, chunks, end) = reply(&[], 0, false);
    assert_eq!((chunks, end), (1, CHUNK_HEADER_BYTES), "nothing is one empty chunk");
}

#[test]
fn requests_round_trip_and_garbage_does_not() {
    let request = Request { flags: 5, command: 7, cookie: u64::MAX, offset: 1 << 63, len: 99 };
    assert_eq!(Request::decode(&request.encode()).unwrap(), request);
    let mut bytes = request.encode();
    bytes[0] ^= 1;
    assert!(Request::decode(&bytes).is_err());
    assert!(ReplyStart::decode(&[0; 16]).is_err());
    let simple = encode_simple_reply(9, 5);
    assert_eq!(ReplyStart::decode(&simple).unwrap(), ReplyStart::Simple { errno: 5, cookie: 9 });
}

#[test]
fn error_chunks_round_trip_and_are_cut() {
    let long = "ä".repeat(4000);
    let wire = encode_error_chunk(3, 5, &long);
    assert!(wire.len() <= CHUNK_HEADER_BYTES + 6 + MAX_MESSAGE_BYTES);
    let error = ErrorChunk::decode(&wire[CHUNK_HEADER_BYTES..]).unwrap();
    assert_eq!(error.errno, 5);
    assert!(long.starts_with(&error.message) && !error.message.is_empty());
    assert!(ErrorChunk::decode(&[0, 0, 0, 0, 0, 0]).is_err(), "an error without a number");
    assert!(ErrorChunk::decode(&[0, 0, 0, 5, 0, 9, b'x']).is_err(), "a message cut off");
    assert!(ErrorChunk::decode(&[0, 0, 0]).is_err());
}

#[test]
fn block_status_round_trips_and_nonsense_does_not() {
    let list = [(4096, 0), (65536, 3)];
    let wire = encode_block_status(8, 1, list.into_iter());
    let (id, back) = decode_block_status(&wire[CHUNK_HEADER_BYTES..]).unwrap();
    assert_eq!((id, back.as_slice()), (1, list.as_slice()));
    for bad in [&[][..], &[0, 0, 0, 1], &[0; 11], &[0; 12]] {
        assert!(decode_block_status(bad).is_err(), "{bad:?}");
    }
}
