//! Servers that lie to our client. Whatever they say, the client answers with an error in bounded
//! time, and never with data they did not send.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backstay_blockdev::{BlockDevice, ErrorKind};
use backstay_nbd::ErrorKind as NbdErrorKind;
use backstay_nbd::client::{Client, NbdUri, Remote};
use backstay_nbd::proto::handshake::{
    Info, encode_greeting, encode_meta_context, encode_option_reply, option, reply,
};
use backstay_nbd::proto::transmission::{
    ChunkHeader, chunk, encode_block_status, encode_error_chunk, encode_simple_reply,
};

use crate::support::PATIENCE;

const SIZE: u64 = 1 << 20;

/// A server that runs a script for each connection.
struct Liar {
    uri: NbdUri,
    thread: Option<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
    socket: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Liar {
    fn new(script: impl Fn(&mut UnixStream) + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let is_ended = ended.clone();
        let thread = std::thread::spawn(move || {
            loop {
                let (mut stream, _) = listener.accept().unwrap();
                if is_ended.load(Ordering::SeqCst) {
                    return;
                }
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                script(&mut stream);
            }
        });
        let uri = NbdUri::unix(&socket, "x");
        Self { uri, thread: Some(thread), ended, socket, _dir: dir }
    }

    fn client(&self) -> Result<Remote, backstay_nbd::Error> {
        let client = Client {
            handshake_timeout: Duration::from_secs(2),
            reply_timeout: Duration::from_secs(2),
            connections: 1,
            ..Client::default()
        };
        client.attach(&self.uri)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.socket));
        let result = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            result.unwrap().unwrap();
        }
    }
}

/// Reads an option of the client: its number and payload.
fn read_option(stream: &mut UnixStream) -> Option<(u32, Vec<u8>)> {
    let mut head = [0; 16];
    stream.read_exact(&mut head).ok()?;
    let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
    let mut payload = vec![0; u32::from_be_bytes(head[12..].try_into().unwrap()) as usize];
    stream.read_exact(&mut payload).ok()?;
    Some((option, payload))
}

/// An honest handshake, except where `lie` answers something else.
fn shake(stream: &mut UnixStream, lie: impl Fn(u32) -> Option<Vec<u8>>) -> Option<()> {
    stream.write_all(&encode_greeting(3)).ok()?;
    stream.read_exact(&mut [0; 4]).ok()?;
    loop {
        let (option, _) = read_option(stream)?;
        let mut out = Vec::new();
        if let Some(lie) = lie(option) {
            out = lie;
        } else {
            if option == option::SET_META_CONTEXT {
                let payload = encode_meta_context(1, "base:allocation");
                encode_option_reply(&mut out, option, reply::META_CONTEXT, &payload);
            }
            if option == option::GO {
                let info = Info::Export { size_bytes: SIZE, flags: 0b11 };
                encode_option_reply(&mut out, option, reply::INFO, &info.encode());
            }
            encode_option_reply(&mut out, option, reply::ACK, &[]);
        }
        stream.write_all(&out).ok()?;
        if option == option::GO {
            return Some(());
        }
    }
}

/// Serves honestly up to the first request, whose cookie, offset and length make the reply.
fn one_reply(answer: impl Fn(u64, u64, u32) -> Vec<u8> + Send + 'static) -> Liar {
    Liar::new(move |stream| {
        if shake(stream, |_| None).is_none() {
            return;
        }
        let mut request = [0; 28];
        if stream.read_exact(&mut request).is_err() {
            return;
        }
        let cookie = u64::from_be_bytes(request[8..16].try_into().unwrap());
        let offset = u64::from_be_bytes(request[16..24].try_into().unwrap());
        let len = u32::from_be_bytes(request[24..].try_into().unwrap());
        let _ = stream.write_all(&answer(cookie, offset, len));
    })
}

fn part(kind: u16, flags: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let header = ChunkHeader { flags, kind, cookie, len: payload.len() as u32 };
    let mut out = header.encode().to_vec();
    out.extend_from_slice(payload);
    out
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

fn hole(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

const DONE: u16 = chunk::FLAG_DONE;

/// The read of 4096 bytes at 8192 that is answered by `answer` must fail.
#[track_caller]
fn read_fails(answer: impl Fn(u64) -> Vec<u8> + Send + 'static) -> String {
    let liar = one_reply(move |cookie, _, _| answer(cookie));
    let remote = liar.client().unwrap();
    let start = Instant::now();
    let error = remote.read_at(8192, &mut [0xa5; 4096]).expect_err("a lie was believed");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(start.elapsed() < Duration::from_secs(6));
    error.to_string()
}

#[test]
fn an_honest_reply_is_believed() {
    let liar = one_reply(|cookie, offset, _| {
        let mut out = part(chunk::OFFSET_DATA, 0, cookie, &data(offset + 1000, &[7; 3096]));
        out.extend(part(chunk::OFFSET_HOLE, DONE, cookie, &hole(offset, 1000)));
        out
    });
    let mut buf = [0xa5; 4096];
    liar.client().unwrap().read_at(8192, &mut buf).unwrap();
    assert!(buf[..1000] == [0; 1000] && buf[1000..] == [7; 3096]);
}

/// libnbd CVE-2022-0485's class: success without all the data.
#[test]
fn cve_2022_0485_short_replies_are_errors() {
    let text = read_fails(|c| part(chunk::OFFSET_DATA, DONE, c, &data(8192, &[1; 4095])));
    assert!(text.contains("brought 4095"), "{text}");
    read_fails(|c| part(chunk::NONE, DONE, c, &[]));
    read_fails(|c| part(chunk::OFFSET_DATA, DONE, c, &data(8193, &[1; 4095])));
    read_fails(|c| {
        // A gap in the middle.
        let mut out = part(chunk::OFFSET_DATA, 0, c, &data(8192, &[1; 2000]));
        out.extend(part(chunk::OFFSET_DATA, DONE, c, &data(8192 + 2001, &[1; 2095])));
        out
    });
    read_fails(|c| {
        // Twice the same half.
        let half = data(8192, &[1; 2048]);
        let mut out = part(chunk::OFFSET_DATA, 0, c, &half);
        out.extend(part(chunk::OFFSET_DATA, DONE, c, &half));
        out
    });
    // The stream ends within the data.
    read_fails(|c| part(chunk::OFFSET_DATA, DONE, c, &data(8192, &[1; 4096]))[..2000].to_vec());
}

#[test]
fn an_error_chunk_beside_complete_data_is_an_error() {
    let text = read_fails(|c| {
        let mut out = part(chunk::OFFSET_DATA, 0, c, &data(8192, &[1; 4096]));
        out.extend(encode_error_chunk(c, 5, "the disk \u{1b}[31mburns"));
        out
    });
    assert!(text.contains("EIO") && text.contains("burns") && !text.contains('\u{1b}'), "{text}");
    read_fails(|c| {
        let mut error = 5u32.to_be_bytes().to_vec();
        error.extend_from_slice(&[0, 0]);
        error.extend_from_slice(&8192u64.to_be_bytes());
        let mut out = part(chunk::ERROR_OFFSET, 0, c, &error);
        out.extend(part(chunk::OFFSET_DATA, DONE, c, &data(8192, &[1; 4096])));
        out
    });
}

#[test]
fn data_outside_what_was_asked_is_refused() {
    read_fails(|c| part(chunk::OFFSET_DATA, DONE, c, &data(8191, &[1; 4096])));
    read_fails(|c| part(chunk::OFFSET_DATA, DONE, c, &data(8192, &[1; 4097])));
    read_fails(|c| part(chunk::OFFSET_DATA, DONE, c, &data(u64::MAX - 1, &[1; 4096])));
    read_fails(|c| part(chunk::OFFSET_DATA, DONE, c, &data(0, &[1; 4096])));
    for (offset, len) in [(8192, 4097), (8192, u32::MAX), (u64::MAX, 1), (0, 4096), (8192, 0)] {
        read_fails(move |c| part(chunk::OFFSET_HOLE, DONE, c, &hole(offset, len)));
    }
}

#[test]
fn hostile_lengths_are_refused_without_allocating() {
    for (kind, len) in [
        (chunk::OFFSET_DATA, u32::MAX),
        (chunk::OFFSET_DATA, 8),
        (chunk::OFFSET_DATA, 0),
        (chunk::OFFSET_HOLE, 11),
        (chunk::OFFSET_HOLE, u32::MAX),
        (chunk::ERROR, u32::MAX),
        (chunk::ERROR, 3),
        (chunk::NONE, 5),
        (chunk::BLOCK_STATUS, 12),
        (77, 0),
        (0x80ff, u32::MAX),
    ] {
        read_fails(move |cookie| {
            let mut out = ChunkHeader { flags: DONE, kind, cookie, len }.encode().to_vec();
            out.extend_from_slice(&[0; 64]);
            out
        });
    }
}

#[test]
fn replies_out_of_step_are_refused() {
    let text = read_fails(|c| part(chunk::OFFSET_DATA, DONE, c + 1, &data(8192, &[1; 4096])));
    assert!(text.contains("not ours"), "{text}");
    read_fails(|c| [&encode_simple_reply(c, 0)[..], &[1; 4096]].concat());
    read_fails(|_| vec![0x42; 5000]);
    read_fails(|c| part(chunk::OFFSET_DATA, 0x80 | DONE, c, &data(8192, &[1; 4096])));
    let endless = |c| {
        let one = part(chunk::OFFSET_HOLE, 0, c, &hole(8192, 1));
        one.repeat(70_000)
    };
    let text = read_fails(endless);
    assert!(text.contains("too many pieces"), "{text}");
}

#[test]
fn a_trickle_is_a_timeout() {
    let liar = Liar::new(|stream| {
        if shake(stream, |_| None).is_none() || stream.read_exact(&mut [0; 28]).is_err() {
            return;
        }
        let start = Instant::now();
        // One byte at a time: never silent, never done.
        while start.elapsed() < Duration::from_secs(8) {
            if stream.write_all(&0x668e_33efu32.to_be_bytes()[..1]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    let remote = liar.client().unwrap();
    let start = Instant::now();
    assert!(remote.read_at(0, &mut [0; 512]).is_err());
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[test]
fn a_broken_connection_is_never_used_again() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let liar = Liar::new(move |stream| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        if shake(stream, |_| None).is_none() {
            return;
        }
        let mut request = [0; 28];
        while stream.read_exact(&mut request).is_ok() && request[7] == 0 {
            let cookie = u64::from_be_bytes(request[8..16].try_into().unwrap());
            let own = if n == 0 { cookie + 1 } else { cookie };
            let _ = stream.write_all(&part(chunk::OFFSET_DATA, DONE, own, &data(0, &[3; 512])));
            if n == 0 {
                return;
            }
        }
    });
    let remote = liar.client().unwrap();
    let mut buf = [0; 512];
    remote.read_at(0, &mut buf).unwrap_err();
    remote.read_at(0, &mut buf).unwrap();
    assert!(buf == [3; 512]);
    remote.read_at(0, &mut buf).unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

/// libnbd CVE-2023-5215 and CVE-2023-5871: sizes that are negative, and block status gone wrong.
#[test]
fn cve_2023_5871_block_status_lies() {
    let status_fails = |answer: Box<dyn Fn(u64) -> Vec<u8> + Send>| {
        let liar = one_reply(move |cookie, _, _| answer(cookie));
        let error = liar.client().unwrap().extents(0, 65536, 16).expect_err("a lie was believed");
        assert_eq!(error.kind(), ErrorKind::Io);
    };
    status_fails(Box::new(|c| encode_block_status(c, 2, [(65536, 0)].into_iter())));
    status_fails(Box::new(|c| encode_block_status(c, 1, [(0, 0)].into_iter())));
    status_fails(Box::new(|c| encode_block_status(c, 1, [].into_iter())));
    status_fails(Box::new(|c| part(chunk::BLOCK_STATUS, DONE, c, &[0, 0, 0, 1, 9])));
    status_fails(Box::new(|c| part(chunk::NONE, DONE, c, &[])));
    status_fails(Box::new(|c| part(chunk::OFFSET_HOLE, DONE, c, &hole(0, 65536))));
    status_fails(Box::new(|c| encode_simple_reply(c, 0).to_vec()));
    status_fails(Box::new(|c| encode_error_chunk(c, 22, "")));
    status_fails(Box::new(|cookie| {
        let len = u32::MAX;
        ChunkHeader { flags: DONE, kind: chunk::BLOCK_STATUS, cookie, len }.encode().to_vec()
    }));
    // Longer than asked is allowed for the last extent, and cut.
    let liar = one_reply(|c, _, _| encode_block_status(c, 1, [(u32::MAX, 3)].into_iter()));
    let list = liar.client().unwrap().extents(0, 65536, 16).unwrap();
    assert_eq!((list.len(), list[0].len_bytes), (1, 65536));
}

#[track_caller]
fn handshake_fails(lie: impl Fn(u32) -> Option<Vec<u8>> + Send + 'static) -> backstay_nbd::Error {
    let liar = Liar::new(move |stream| {
        let _ = shake(stream, &lie);
    });
    let start = Instant::now();
    let error = liar.client().expect_err("a lie was believed");
    assert!(start.elapsed() < Duration::from_secs(6));
    error
}

fn go_with(info: Info) -> impl Fn(u32) -> Option<Vec<u8>> {
    move |option| {
        (option == option::GO).then(|| {
            let mut out = Vec::new();
            let honest = Info::Export { size_bytes: SIZE, flags: 3 };
            if !matches!(info, Info::Export { .. }) {
                encode_option_reply(&mut out, option, reply::INFO, &honest.encode());
            }
            encode_option_reply(&mut out, option, reply::INFO, &info.encode());
            encode_option_reply(&mut out, option, reply::ACK, &[]);
            out
        })
    }
}

#[test]
fn cve_2023_5215_a_negative_size_is_refused() {
    for size_bytes in [1 << 63, u64::MAX] {
        let error = handshake_fails(go_with(Info::Export { size_bytes, flags: 3 }));
        assert_eq!(error.kind(), NbdErrorKind::Protocol, "{error}");
    }
}

#[test]
fn block_sizes_that_make_no_sense_are_refused() {
    for (min, preferred, max) in [
        (0, 4096, 1 << 20),
        (3, 4096, 1 << 20),
        (4096, 512, 1 << 20),
        (512, 4096, 0),
        (1 << 17, 1 << 17, 1 << 25),
    ] {
        let error = handshake_fails(go_with(Info::BlockSize { min, preferred, max }));
        assert_eq!(error.kind(), NbdErrorKind::Protocol, "{min} {preferred} {max}: {error}");
    }
}

#[test]
fn handshakes_that_lie_are_refused() {
    let raw = |bytes: Vec<u8>| move |option| (option == option::GO).then(|| bytes.clone());
    let answer = |number, kind, payload: &[u8]| {
        let mut out = Vec::new();
        encode_option_reply(&mut out, number, kind, payload);
        out
    };
    let huge = {
        let mut out = answer(option::GO, reply::INFO, &[]);
        out[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        out
    };
    for bytes in [
        huge,
        vec![0; 100],
        answer(option::LIST, reply::ACK, &[]),
        answer(option::GO, reply::ACK, &[]),
        [answer(option::GO, reply::INFO, &[0]), answer(option::GO, reply::ACK, &[])].concat(),
        [answer(option::GO, reply::INFO, &[0, 0, 1]), answer(option::GO, reply::ACK, &[])].concat(),
        answer(option::GO, reply::INFO, &[0, 9]).repeat(100),
    ] {
        let error = handshake_fails(raw(bytes));
        assert_eq!(error.kind(), NbdErrorKind::Protocol, "{error}");
    }
    let refused = handshake_fails(raw(answer(option::GO, reply::ERR_TLS_REQD, b"no")));
    assert_eq!(refused.kind(), NbdErrorKind::Refused);
    assert!(refused.to_string().contains("TLS"), "{refused}");
    let context = |option| {
        (option == option::SET_META_CONTEXT).then(|| {
            let mut out = Vec::new();
            let payload = encode_meta_context(1, "qemu:dirty-bitmap:x");
            encode_option_reply(&mut out, option, reply::META_CONTEXT, &payload);
            encode_option_reply(&mut out, option, reply::ACK, &[]);
            out
        })
    };
    assert_eq!(handshake_fails(context).kind(), NbdErrorKind::Protocol);
}

/// libnbd CVE-2019-14842: there is no way down to the old style, or to what is no NBD at all.
#[test]
fn cve_2019_14842_other_greetings_are_refused() {
    let mut old = b"NBDMAGIC".to_vec();
    old.extend_from_slice(&0x0000_4202_8186_1253u64.to_be_bytes());
    old.resize(152, 0);
    for greeting in [old, encode_greeting(0).to_vec(), b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()] {
        let liar = Liar::new(move |stream| {
            let _ = stream.write_all(&greeting);
        });
        let error = liar.client().expect_err("no NBD server");
        assert_eq!(error.kind(), NbdErrorKind::Protocol, "{error}");
    }
    let silent = Liar::new(|stream| {
        let _ = stream.read(&mut [0; 100]);
    });
    assert_eq!(silent.client().unwrap_err().kind(), NbdErrorKind::Timeout);
}
