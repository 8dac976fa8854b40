//! TLS: over a raw socket, and with the clients of others.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_blockdev::MemDevice;
use backstay_nbd::proto::handshake::{InfoRequest, encode_option, option, reply};
use backstay_nbd::proto::transmission::{Request, command};
use backstay_nbd::server::{
    Access, ClientCertificates, ExportSpec, ExportTable, Permission, ServerConfig, Source, Tls,
    TlsConfig, TlsFiles, Who,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use crate::support::{Raw, Server, disk, run, run_ok, tool};

const SIZE: usize = 8 << 20;

/// An authority, and the files of those it signs for.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let pem = params.self_signed(&key).unwrap().pem();
        let dir = tempfile::tempdir().unwrap();
        Self { issuer: Issuer::new(params, key), pem, dir }
    }

    /// Files as libnbd and QEMU want them: ca-cert.pem, and NAME-cert.pem and NAME-key.pem of both.
    fn sign(&self, owner: &str, dns: &str, expired: bool) -> PathBuf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, owner);
        if expired {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let dir = self.dir.path().join(owner);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), &self.pem).unwrap();
        for role in ["client", "server"] {
            std::fs::write(dir.join(format!("{role}-cert.pem")), certificate.pem()).unwrap();
            std::fs::write(dir.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
        }
        dir
    }
}

fn files(dir: &Path, clients: ClientCertificates) -> TlsFiles {
    let (certificate, key) = (dir.join("server-cert.pem"), dir.join("server-key.pem"));
    TlsFiles { certificate, key, clients }
}

fn must_show(dir: &Path) -> ClientCertificates {
    ClientCertificates::Required(dir.join("ca-cert.pem"))
}

fn may_show(dir: &Path) -> ClientCertificates {
    ClientCertificates::Optional(dir.join("ca-cert.pem"))
}

fn config(tls: Tls) -> ServerConfig {
    ServerConfig { tls, ..ServerConfig::default() }
}

fn serve(tls: Tls) -> Server {
    Server::with(MemDevice::new(disk(SIZE)), config(tls))
}

fn uri(server: &Server, dir: &Path) -> String {
    let socket = server.socket.display();
    format!("nbds+unix:///disk?socket={socket}&tls-certificates={}", dir.display())
}

type Secure = StreamOwned<ClientConnection, UnixStream>;

/// A raw client that has sent STARTTLS and heard the answer.
fn started(server_socket: &Path) -> UnixStream {
    let mut raw = Raw::connect(server_socket);
    assert_eq!(raw.option(option::STARTTLS, &[]).1, reply::ACK);
    raw.stream
}

fn secure(
    stream: UnixStream,
    dir: &Path,
    shows: bool,
    version: &'static SupportedProtocolVersion,
) -> Secure {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca-cert.pem")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let config = if shows {
        let chain = vec![CertificateDer::from_pem_file(dir.join("client-cert.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(dir.join("client-key.pem")).unwrap();
        builder.with_client_auth_cert(chain, key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

/// Sends an option; answers the type and payload of the first reply.
fn ask(stream: &mut Secure, option: u32, payload: &[u8]) -> std::io::Result<(u32, Vec<u8>)> {
    stream.write_all(&encode_option(option, payload))?;
    let mut head = [0; 20];
    stream.read_exact(&mut head)?;
    let reply = u32::from_be_bytes(*head[12..].first_chunk().unwrap());
    let mut payload = vec![0; u32::from_be_bytes(*head[16..].first_chunk().unwrap()) as usize];
    stream.read_exact(&mut payload)?;
    Ok((reply, payload))
}

fn go(export: &str) -> Vec<u8> {
    InfoRequest { export: export.to_owned(), wants: vec![] }.encode()
}

#[test]
fn required_tls_reveals_nothing_before() {
    let authority = Authority::new();
    let dir = authority.sign("server", "localhost", false);
    let tls = TlsConfig::from_pem(files(&dir, ClientCertificates::Ignored)).unwrap();
    let server = serve(Tls::Required(tls));
    let mut raw = server.raw();
    for option in [2u32, 3, 6, 7, 8, 9, 10, 11, 99].into_iter().filter(|o| *o != option::ABORT) {
        for export in ["disk", "nope"] {
            assert_eq!(raw.option(option, &go(export)).1, reply::ERR_TLS_REQD, "option {option}");
        }
    }
    assert_eq!(raw.option(option::STARTTLS, b"x").1, reply::ERR_INVALID);
    for export in [&b"disk"[..], b"nope"] {
        let mut raw = server.raw();
        raw.write(&encode_option(option::EXPORT_NAME, export));
        raw.expect_end();
    }
    let mut raw = server.raw();
    assert_eq!(raw.option(option::ABORT, &[]).1, reply::ACK);
    assert_eq!(server.exports.opened.load(std::sync::atomic::Ordering::SeqCst), 0);
}

/// CVE-2021-3716: options in plain text behind STARTTLS, as if they had been encrypted.
#[test]
fn cve_2021_3716_plain_text_behind_starttls_ends_the_connection() {
    let authority = Authority::new();
    let dir = authority.sign("server", "localhost", false);
    let tls = TlsConfig::from_pem(files(&dir, ClientCertificates::Ignored)).unwrap();
    let server = serve(Tls::Allowed(tls));
    for behind in [encode_option(option::STRUCTURED_REPLY, &[]), vec![0], vec![0x16, 3, 1]] {
        let mut raw = server.raw();
        raw.write(&[encode_option(option::STARTTLS, &[]), behind].concat());
        raw.expect_end();
    }
    // A moment later it meets the TLS handshake, which does not understand it either.
    let mut stream = started(&server.socket);
    stream.write_all(&encode_option(option::STRUCTURED_REPLY, &[])).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.first().is_none_or(|record| *record == 21), "no alert: {rest:?}");
}

#[test]
fn what_was_agreed_on_before_is_forgotten_in_both_versions() {
    let authority = Authority::new();
    let dir = authority.sign("server", "localhost", false);
    let tls = TlsConfig::from_pem(files(&dir, ClientCertificates::Ignored)).unwrap();
    let server = serve(Tls::Allowed(tls));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut raw = server.raw();
        raw.structured();
        raw.option(option::EXTENDED_HEADERS, &[]);
        raw.allocation("disk");
        assert_eq!(raw.option(option::STARTTLS, &[]).1, reply::ACK);
        let mut stream = secure(raw.stream, &dir, false, version);
        let twice = ask(&mut stream, option::STARTTLS, &[]).unwrap();
        assert_eq!(twice.0, reply::ERR_INVALID);
        // Extended headers would have made this an error.
        assert_eq!(ask(&mut stream, option::GO, &go("disk")).unwrap().0, reply::INFO);
        let mut ack = [0; 20];
        stream.read_exact(&mut ack).unwrap();
        // Simple replies, as nothing else was agreed on since; a read longer than all buffers.
        let len = 4 << 20;
        let request = Request { flags: 0, command: command::READ, cookie: 1, offset: 5, len };
        stream.write_all(&request.encode()).unwrap();
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data).unwrap();
        assert!(data == disk(SIZE)[5..5 + len as usize]);
        let request = Request { flags: 0, command: command::WRITE, cookie: 2, offset: 0, len };
        stream.write_all(&request.encode()).unwrap();
        stream.write_all(&disk(SIZE)[..len as usize]).unwrap();
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head[4..8], [0; 4]);
        // A good-bye is answered with a good-bye: no end without one.
        let request = Request { flags: 0, command: command::DISC, cookie: 3, offset: 0, len: 0 };
        stream.write_all(&request.encode()).unwrap();
        assert_eq!(stream.read(&mut head).unwrap(), 0);
    }
}

#[test]
fn certificates_of_clients_are_checked_and_open_exports() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let own = authority.sign("server", "localhost", false);
    let good = authority.sign("good", "good.example", false);
    let other = authority.sign("other", "other.example", false);
    let late = authority.sign("late", "good.example", true);
    let foreign = stranger.sign("foreign", "good.example", false);
    std::fs::copy(own.join("ca-cert.pem"), foreign.join("ca-cert.pem")).unwrap();
    let table = ExportTable::new();
    let access = Access::nobody().allow(Who::DnsName("good.example".into()), Permission::ReadOnly);
    let source = Source::Device(Arc::new(MemDevice::new(disk(4096))));
    let spec = ExportSpec { name: "disk".into(), description: String::new(), source, access };
    table.add(spec).unwrap();
    let table = Arc::new(table);
    for (clients, nobody_may_come) in [(must_show(&own), false), (may_show(&own), true)] {
        let tls = TlsConfig::from_pem(files(&own, clients)).unwrap();
        let server = Server::of(table.clone(), config(Tls::Required(tls)));
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let asks = |dir: &Path, shows: bool| {
                let mut stream = secure(started(&server.socket), dir, shows, version);
                let first = ask(&mut stream, option::GO, &go("disk")).map(|(reply, _)| reply);
                first.map(|reply| (reply, stream)).map_err(|_| ())
            };
            let (reply, _stream) = asks(&good, true).unwrap();
            assert_eq!(reply, reply::INFO);
            let attached = table.attached("disk");
            let certificate = attached[0].client.certificate.as_ref().unwrap();
            assert_eq!(certificate.common_name.as_deref(), Some("good"));
            assert_eq!(certificate.dns_names, ["good.example"]);
            let der = CertificateDer::from_pem_file(good.join("client-cert.pem")).unwrap();
            let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
            assert_eq!(certificate.sha256, sha256.as_ref());
            assert_eq!(asks(&other, true).unwrap().0, reply::ERR_UNKNOWN);
            assert!(asks(&late, true).is_err(), "expired");
            assert!(asks(&foreign, true).is_err(), "of another authority");
            match asks(&good, false) {
                Ok((reply, _)) => assert!(nobody_may_come && reply == reply::ERR_UNKNOWN),
                Err(()) => assert!(!nobody_may_come),
            }
        }
    }
}

#[test]
fn silence_in_the_tls_handshake_ends_too() {
    let authority = Authority::new();
    let dir = authority.sign("server", "localhost", false);
    let tls = TlsConfig::from_pem(files(&dir, ClientCertificates::Ignored)).unwrap();
    let handshake_timeout = std::time::Duration::from_millis(300);
    let config = ServerConfig { handshake_timeout, ..config(Tls::Required(tls)) };
    let server = Server::with(MemDevice::new(disk(4096)), config);
    let mut stream = started(&server.socket);
    // The start of a record, and no more.
    stream.write_all(&[0x16, 3, 1, 2, 0]).unwrap();
    assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0);
}

#[test]
fn certificates_are_read_again() {
    let (first, second) = (Authority::new(), Authority::new());
    let dir = first.sign("server", "localhost", false);
    let new = second.sign("server", "localhost", false);
    let tls = TlsConfig::from_pem(files(&dir, ClientCertificates::Ignored)).unwrap();
    let server = serve(Tls::Required(tls.clone()));
    let version = &rustls::version::TLS13;
    let works = |dir: &Path| {
        let mut stream = secure(started(&server.socket), dir, false, version);
        ask(&mut stream, option::LIST, &[]).is_ok()
    };
    let mut stays = secure(started(&server.socket), &dir, false, version);
    ask(&mut stays, option::GO, &go("disk")).unwrap();
    let trusts_first = first.sign("client", "c", false);
    assert!(works(&trusts_first) && !works(&new));
    for name in ["server-cert.pem", "server-key.pem"] {
        std::fs::copy(new.join(name), dir.join(name)).unwrap();
    }
    assert!(works(&trusts_first), "not before it is asked to");
    tls.reload().unwrap();
    assert!(works(&new) && !works(&trusts_first));
    std::fs::write(dir.join("server-key.pem"), "no key").unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("server-key.pem"), "{error}");
    assert!(works(&new), "the old ones stay in use");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new();
    let dir = authority.sign("a", "a", false);
    let other = authority.sign("b", "b", false);
    let good = files(&dir, must_show(&dir));
    TlsConfig::from_pem(good.clone()).unwrap();
    let empty = dir.join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let gone = dir.join("gone.pem");
    for (bad, named) in [
        (TlsFiles { certificate: gone.clone(), ..good.clone() }, "gone.pem"),
        (TlsFiles { certificate: empty.clone(), ..good.clone() }, "empty.pem"),
        (TlsFiles { key: empty.clone(), ..good.clone() }, "empty.pem"),
        (TlsFiles { key: other.join("server-key.pem"), ..good.clone() }, "server-key.pem"),
        (TlsFiles { clients: ClientCertificates::Required(gone), ..good.clone() }, "gone.pem"),
        (TlsFiles { clients: ClientCertificates::Optional(empty), ..good }, "empty.pem"),
    ] {
        let error = TlsConfig::from_pem(bad).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn nbdinfo_and_nbdcopy_over_tls() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let own = authority.sign("server", "localhost", false);
    let client = authority.sign("client", "client.example", false);
    let foreign = stranger.sign("foreign", "x", false);
    let tls = TlsConfig::from_pem(files(&own, must_show(&own))).unwrap();
    let server = serve(Tls::Required(tls));
    let text = run_ok(tool("nbdinfo", "libnbd-bin").arg(uri(&server, &client)));
    assert!(text.contains("newstyle-fixed with TLS"), "{text}");
    let copy = server.dir.path().join("copy");
    run_ok(tool("nbdcopy", "libnbd-bin").arg(uri(&server, &client)).arg(&copy));
    assert!(std::fs::read(&copy).unwrap() == disk(SIZE));
    run_ok(tool("nbdcopy", "libnbd-bin").arg(&copy).arg(uri(&server, &client)));
    for bad in [uri(&server, &foreign), server.uri_text("disk")] {
        assert!(!run(tool("nbdinfo", "libnbd-bin").arg(&bad)).status.success(), "{bad}");
    }
}

#[test]
fn qemu_img_over_tls() {
    let authority = Authority::new();
    let own = authority.sign("server", "localhost", false);
    let client = authority.sign("client", "client.example", false);
    let tls = TlsConfig::from_pem(files(&own, must_show(&own))).unwrap();
    let server = serve(Tls::Required(tls));
    let copy = server.dir.path().join("copy.raw");
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export=disk,tls-creds=t,tls-hostname=localhost",
        server.socket.display()
    );
    let creds = format!("tls-creds-x509,id=t,endpoint=client,dir={}", client.display());
    let mut convert = tool("qemu-img", "qemu-utils");
    convert.args(["convert", "--object", &creds, "--image-opts", &image, "-O", "raw"]).arg(&copy);
    run_ok(&mut convert);
    assert!(std::fs::read(&copy).unwrap() == disk(SIZE));
}
