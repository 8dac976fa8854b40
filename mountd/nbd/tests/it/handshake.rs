//! Negotiation, feature by feature and decline by decline, over a raw socket.

use std::sync::atomic::Ordering;

use backstay_blockdev::MemDevice;
use backstay_nbd::proto::handshake::{
    Info, InfoRequest, MetaContextRequest, encode_option, info, option, reply,
};
use backstay_nbd::proto::transmission::{command, flag};

use crate::support::{Raw, Server};

fn opened(server: &Server) -> usize {
    server.exports.opened.load(Ordering::SeqCst)
}

#[test]
fn list_names_the_exports_and_opens_none() {
    let (server, _) = Server::disk(4096);
    let mut raw = server.raw();
    let (items, end) = raw.option(option::LIST, &[]);
    assert_eq!(end, reply::ACK);
    assert_eq!(items.len(), 2);
    assert_eq!(items[0], (reply::SERVER, b"\0\0\0\x04diskthe first disk".to_vec()));
    assert_eq!(raw.option(option::LIST, b"x").1, reply::ERR_INVALID);
    assert_eq!(opened(&server), 0);
}

#[test]
fn go_tells_what_was_asked() {
    let (server, _) = Server::disk(1 << 20);
    let mut raw = server.raw();
    let infos = raw.go("disk", &[info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 999]);
    let flags = flag::HAS_FLAGS
        | flag::READ_ONLY
        | flag::SEND_FLUSH
        | flag::CAN_MULTI_CONN
        | flag::SEND_CACHE;
    assert_eq!(
        infos,
        [
            Info::Export { size_bytes: 1 << 20, flags },
            Info::BlockSize { min: 1, preferred: 4096, max: 32 << 20 },
            Info::Name("disk".to_owned()),
            Info::Description("the first disk".to_owned()),
        ]
    );
    raw.request(command::READ, 0, 0, 1);
    assert_eq!(raw.simple().0, 0);
}

#[test]
fn writable_exports_say_so() {
    let server = Server::start(MemDevice::new(vec![0; 4096]));
    let mut raw = server.raw();
    raw.structured();
    let Info::Export { flags, .. } = raw.go("", &[])[0] else { panic!() };
    assert_eq!(flags & flag::READ_ONLY, 0);
    for bit in [
        flag::SEND_DF,
        flag::SEND_FLUSH,
        flag::SEND_FUA,
        flag::SEND_TRIM,
        flag::SEND_WRITE_ZEROES,
        flag::SEND_FAST_ZERO,
        flag::CAN_MULTI_CONN,
    ] {
        assert_ne!(flags & bit, 0, "{bit:#x}");
    }
}

#[test]
fn info_stays_in_the_handshake() {
    let (server, _) = Server::disk(4096);
    let mut raw = server.raw();
    let request = InfoRequest { export: "disk".to_owned(), wants: vec![] };
    for _ in 0..3 {
        let (items, end) = raw.option(option::INFO, &request.encode());
        assert_eq!((items.len(), end), (1, reply::ACK));
    }
    raw.go("disk", &[]);
}

#[test]
fn an_unknown_export_is_a_clear_error_and_the_next_may_be_right() {
    let (server, _) = Server::disk(4096);
    let mut raw = server.raw();
    for option in [option::INFO, option::GO] {
        let request = InfoRequest { export: "nope".to_owned(), wants: vec![] };
        raw.write(&encode_option(option, &request.encode()));
        let (kind, text) = raw.option_reply(option);
        assert_eq!(kind, reply::ERR_UNKNOWN);
        assert_eq!(text, b"there is no such export");
    }
    // What cannot be opened is refused too, without telling why.
    let request = InfoRequest { export: "broken".to_owned(), wants: vec![] };
    raw.write(&encode_option(option::GO, &request.encode()));
    let (kind, text) = raw.option_reply(option::GO);
    assert_eq!(kind, reply::ERR_UNKNOWN);
    assert!(!String::from_utf8(text).unwrap().contains("/srv"));
    raw.go("disk", &[]);
}

#[test]
fn export_name_with_and_without_zeroes() {
    let (server, bytes) = Server::disk(8192);
    for (flags, zeroes) in [(1u32, 124), (3, 0)] {
        let mut raw = Raw::silent(&server.socket);
        raw.read::<18>();
        raw.write(&flags.to_be_bytes());
        raw.write(&encode_option(option::EXPORT_NAME, b"disk"));
        assert_eq!(u64::from_be_bytes(raw.read()), 8192);
        raw.read::<2>();
        assert!(raw.read_vec(zeroes).iter().all(|b| *b == 0));
        let cookie = raw.request(command::READ, 0, 100, 50);
        assert_eq!(raw.simple(), (0, cookie));
        assert_eq!(raw.read_vec(50), bytes[100..150]);
    }
}

#[test]
fn export_name_of_an_unknown_export_hangs_up() {
    let (server, _) = Server::disk(4096);
    for name in [&b"nope"[..], b"broken", b"a\0b", b"\xff"] {
        let mut raw = server.raw();
        raw.write(&encode_option(option::EXPORT_NAME, name));
        raw.expect_end();
    }
}

#[test]
fn abort_is_acknowledged_and_ends() {
    let (server, _) = Server::disk(4096);
    let mut raw = server.raw();
    assert_eq!(raw.option(option::ABORT, &[]).1, reply::ACK);
    raw.expect_end();
}

#[test]
fn what_is_declined_is_declined_by_the_book() {
    let (server, _) = Server::disk(4096);
    let mut raw = server.raw();
    for option in [4, option::STARTTLS, 12, 99, u32::MAX] {
        assert_eq!(raw.option(option, &[]).1, reply::ERR_UNSUP, "option {option}");
        assert_eq!(raw.option(option, b"payload").1, reply::ERR_UNSUP, "option {option}");
    }
    assert_eq!(raw.option(option::STRUCTURED_REPLY, b"x").1, reply::ERR_INVALID);
    raw.go("disk", &[]);
}

fn contexts(raw: &mut Raw, option: u32, export: &str, queries: &[&str]) -> (Vec<Vec<u8>>, u32) {
    let queries = queries.iter().map(|q| (*q).to_owned()).collect();
    let request = MetaContextRequest { export: export.to_owned(), queries };
    let (items, end) = raw.option(option, &request.encode());
    (items.into_iter().map(|(_, payload)| payload).collect(), end)
}

#[test]
fn metadata_contexts_by_the_book() {
    let (server, _) = Server::disk(4096);
    let mut raw = server.raw();
    let (list, set) = (option::LIST_META_CONTEXT, option::SET_META_CONTEXT);
    for option in [list, set] {
        let end = contexts(&mut raw, option, "disk", &["base:allocation"]).1;
        assert_eq!(end, reply::ERR_INVALID, "before structured replies");
    }
    raw.structured();
    let all = vec![b"\0\0\0\0base:allocation".to_vec()];
    for queries in [&[][..], &["base:"], &["base:allocation"], &["qemu:", "base:allocation"]] {
        assert_eq!(contexts(&mut raw, list, "disk", queries), (all.clone(), reply::ACK));
    }
    assert_eq!(contexts(&mut raw, list, "disk", &["qemu:"]), (vec![], reply::ACK));
    let chosen = vec![b"\0\0\0\x01base:allocation".to_vec()];
    let (items, end) = contexts(&mut raw, set, "disk", &["x:y", "base:allocation"]);
    assert_eq!((items, end), (chosen, reply::ACK));
    for queries in [&[][..], &["base:"], &["base:other"]] {
        assert_eq!(contexts(&mut raw, set, "disk", queries), (vec![], reply::ACK));
    }
    for option in [list, set] {
        assert_eq!(contexts(&mut raw, option, "nope", &[]).1, reply::ERR_UNKNOWN);
    }
    assert_eq!(opened(&server), 0, "contexts are chosen without opening anything");
}

#[test]
fn contexts_of_another_export_count_for_nothing() {
    let (server, _) = Server::disk(4096);
    let mut raw = server.raw();
    raw.structured();
    raw.allocation("");
    raw.go("disk", &[]);
    let cookie = raw.request(command::BLOCK_STATUS, 0, 0, 4096);
    assert_eq!(raw.error(cookie), 22, "EINVAL");
}

#[test]
fn clients_that_are_not_fixed_newstyle_have_one_option() {
    let (server, _) = Server::disk(4096);
    let mut raw = Raw::silent(&server.socket);
    raw.read::<18>();
    raw.write(&0u32.to_be_bytes());
    raw.write(&encode_option(option::LIST, &[]));
    raw.expect_end();
    let mut raw = Raw::silent(&server.socket);
    raw.read::<18>();
    raw.write(&4u32.to_be_bytes());
    raw.expect_end();
}
