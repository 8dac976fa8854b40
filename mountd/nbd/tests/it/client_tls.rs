//! Our client in TLS, against the servers of others.

use std::path::Path;
use std::process::Stdio;

use backstay_blockdev::{BlockDevice, conformance};
use backstay_nbd::ErrorKind;
use backstay_nbd::client::{Client, NbdUri, TlsParameters};

use crate::support::{Running, disk, run_ok, sparse, start_server, tool};

const SIZE: usize = 4 << 20;

/// Makes a directory of certificates: an authority, a server called `localhost`, a client.
fn certificates(dir: &Path) {
    let path = |name: &str| dir.join(name).display().to_string();
    let make = |name: &str, subject: &str, extensions: &[&str], signed: bool| {
        let mut command = tool("openssl", "openssl");
        command.args(["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"]);
        command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", subject]);
        command.args(["-keyout", &path(&format!("{name}-key.pem"))]);
        command.args(["-out", &path(&format!("{name}-cert.pem"))]);
        if signed {
            command.args(["-CA", &path("ca-cert.pem"), "-CAkey", &path("ca-key.pem")]);
        }
        for extension in extensions {
            command.args(["-addext", extension]);
        }
        run_ok(&mut command);
    };
    make("ca", "/CN=authority", &["keyUsage=critical,keyCertSign"], false);
    let usage = "keyUsage=critical,digitalSignature,keyEncipherment";
    let leaf = ["basicConstraints=critical,CA:FALSE", usage];
    let server = ["subjectAltName=DNS:localhost", "extendedKeyUsage=serverAuth"];
    make("server", "/CN=localhost", &[leaf, server].concat(), true);
    let client = ["subjectAltName=DNS:client", "extendedKeyUsage=clientAuth"];
    make("client", "/CN=client", &[leaf, client].concat(), true);
}

fn nbds(socket: &Path, export: &str, certificates: &Path) -> NbdUri {
    let certificates = Some(certificates.to_owned());
    let tls = Some(TlsParameters { certificates, hostname: None });
    NbdUri { tls, ..NbdUri::unix(socket, export) }
}

fn nbdkit(dir: &Path, tls: &[&str]) -> (Running, Vec<u8>) {
    let bytes = disk(SIZE);
    sparse(&dir.join("disk.raw"), &bytes);
    let socket = dir.join("s");
    let mut command = tool("nbdkit", "nbdkit");
    command.args(["-f", "--exit-with-parent", "-U"]).arg(&socket).args(tls);
    command.arg("file").arg(dir.join("disk.raw"));
    (start_server(command.stderr(Stdio::null()), &socket), bytes)
}

#[test]
fn nbdkit_in_tls() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let option = format!("--tls-certificates={}", dir.path().display());
    let (_server, mut bytes) = nbdkit(dir.path(), &["--tls=require", &option, "--tls-verify-peer"]);
    let socket = dir.path().join("s");
    let uri = nbds(&socket, "", dir.path());
    for connections in [1, 4] {
        let client = Client { connections, ..Client::default() };
        let remote = client.attach(&uri).unwrap();
        conformance::check_writes(&remote, &mut bytes, 1);
    }
    assert_eq!(Client::default().list_exports(&uri).unwrap().len(), 1);
    // Read back as the URI that it shows.
    let text = uri.to_string();
    assert!(text.starts_with("nbds+unix:///?socket="), "{text}");
    Client::connect(&NbdUri::parse(&text).unwrap()).unwrap();
    // Without TLS it does not let us in, and says why.
    let error = Client::connect(&NbdUri::unix(&socket, "")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("TLS"), "{error}");
    // Without a certificate of ours neither.
    let bare = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("ca-cert.pem"), bare.path().join("ca-cert.pem")).unwrap();
    assert!(Client::connect(&nbds(&socket, "", bare.path())).is_err());
}

#[test]
fn qemu_nbd_in_tls() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let bytes = disk(SIZE);
    sparse(&dir.path().join("disk.raw"), &bytes);
    let socket = dir.path().join("s");
    let mut command = tool("qemu-nbd", "qemu-utils");
    let object = format!(
        "tls-creds-x509,id=tls0,endpoint=server,verify-peer=on,dir={}",
        dir.path().display()
    );
    command.args(["-t", "-r", "-f", "raw", "-x", "disk", "-e", "8", "--object", &object]);
    command.args(["--tls-creds", "tls0", "-k"]).arg(&socket).arg(dir.path().join("disk.raw"));
    let _server = start_server(&mut command, &socket);
    let remote = Client::connect(&nbds(&socket, "disk", dir.path())).unwrap();
    conformance::check(&remote, &bytes, 2);
    assert!(remote.knows_holes());
}

/// Who is not who they should be gets not one byte from us.
#[test]
fn strangers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let other = tempfile::tempdir().unwrap();
    certificates(other.path());
    let option = format!("--tls-certificates={}", dir.path().display());
    let (_server, _) = nbdkit(dir.path(), &["--tls=require", &option]);
    let socket = dir.path().join("s");
    // Another authority.
    let error = Client::connect(&nbds(&socket, "", other.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    // Another name.
    let name = Client { tls_hostname: Some("elsewhere".to_owned()), ..Client::default() };
    let error = name.attach(&nbds(&socket, "", dir.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    // No directory, one without an authority, one with nonsense in it.
    let mut uri = nbds(&socket, "", dir.path());
    uri.tls = Some(TlsParameters::default());
    assert_eq!(Client::connect(&uri).unwrap_err().kind(), ErrorKind::Invalid);
    let empty = tempfile::tempdir().unwrap();
    let error = Client::connect(&nbds(&socket, "", empty.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    std::fs::write(empty.path().join("ca-cert.pem"), "no certificate").unwrap();
    let error = Client::connect(&nbds(&socket, "", empty.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

/// A server without TLS is not talked to without it when TLS was asked for.
#[test]
fn there_is_no_way_down_from_tls() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let (_server, _) = nbdkit(dir.path(), &["--tls=off"]);
    let uri = nbds(&dir.path().join("s"), "", dir.path());
    let error = Client::connect(&uri).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let remote = Client::connect(&NbdUri::unix(dir.path().join("s"), "")).unwrap();
    remote.read_at(0, &mut [0; 512]).unwrap();
}
