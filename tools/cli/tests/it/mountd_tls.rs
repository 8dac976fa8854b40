//! Mounts over encrypted connections, with certificates that say who may do what.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::mountd::{text, with_backup};
use super::support::{Place, noise, sample};

fn openssl(args: &[&str]) {
    let done = Command::new("openssl").args(args).output().expect("openssl is installed");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// A directory with an authority and the certificates of a server and of a client called `name`.
fn certificates(directory: &Path, authority: Option<&Path>, name: &str) {
    std::fs::create_dir_all(directory).expect("made");
    let path = |file: &str| directory.join(file).display().to_string();
    let make = |file: &str, extensions: &[&str], signer: Option<&Path>| {
        let (key, cert) = (path(&format!("{file}-key.pem")), path(&format!("{file}-cert.pem")));
        let mut args = vec!["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"];
        args.extend(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=backstay"]);
        args.extend(["-keyout", &key, "-out", &cert]);
        let files = signer.map(|at| {
            ["ca-cert.pem", "ca-key.pem"].map(|file| at.join(file).display().to_string())
        });
        if let Some([cert, key]) = &files {
            args.extend(["-CA", cert, "-CAkey", key]);
        }
        for extension in extensions {
            args.extend(["-addext", extension]);
        }
        openssl(&args);
    };
    match authority {
        None => make("ca", &["keyUsage=critical,keyCertSign"], None),
        Some(at) => {
            std::fs::copy(at.join("ca-cert.pem"), directory.join("ca-cert.pem")).expect("copied");
        }
    }
    let signer = Some(authority.unwrap_or(directory));
    let usage = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature"];
    let server = ["subjectAltName=IP:127.0.0.1,DNS:localhost", "extendedKeyUsage=serverAuth"];
    make("server", &[usage, server].concat(), signer);
    let client = [&*format!("subjectAltName=DNS:{name}"), "extendedKeyUsage=clientAuth"];
    make("client", &[usage, client].concat(), signer);
}

/// What `nbdinfo` says of an export with certificates of a directory.
fn info(uri: &str, certificates: &Path) -> Result<Value, String> {
    let uri = format!("{uri}?tls-certificates={}", certificates.display());
    let done = Command::new("nbdinfo").args(["--json", &uri]).output();
    let done = done.expect("nbdinfo (package libnbd-bin) is installed");
    match done.status.success() {
        true => Ok(serde_json::from_slice(&done.stdout).expect("JSON")),
        false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
    }
}

fn copied(place: &Place, uri: &str, certificates: &Path) -> Vec<u8> {
    let copy = place.path("copy.raw");
    let uri = format!("{uri}?tls-certificates={}", certificates.display());
    let done = Command::new("nbdcopy").arg(uri).arg(&copy).output().expect("nbdcopy is installed");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    std::fs::read(copy).expect("the copy")
}

#[test]
fn certificates_decide_who_may_do_what() {
    let content = sample(21);
    let place = with_backup(&content);
    let (server, other, stranger) =
        (place.path("kvm1"), place.path("kvm2"), place.path("stranger"));
    certificates(&server, None, "kvm1.example");
    certificates(&other, Some(&server), "kvm2.example");
    certificates(&stranger, None, "kvm1.example");
    let directory = server.display().to_string();
    let mut running = place.start(&["mountd", "--json", "--tls-certificates", &directory]);
    running.first_line();
    let mount = place.run(&[
        "mount",
        "nbd",
        "web01",
        "--writable",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--allow",
        "dns:kvm1.example",
        "--allow",
        "dns:kvm2.example=ro",
    ]);
    let view = mount.code(0).json();
    let uri = text(&view, "uri");
    assert!(uri.starts_with("nbds://127.0.0.1:"), "{uri}");
    let commands = view["client_commands"].to_string();
    assert!(commands.contains("tls-creds=tls0") && commands.contains("-cacertfile"), "{commands}");

    let export = info(&uri, &server).expect("who is named gets in");
    assert_eq!(export["exports"][0]["is_read_only"], false, "{export}");
    assert_eq!(export["TLS"], true, "{export}");
    let export = info(&uri, &other).expect("who is named to read gets in");
    assert_eq!(export["exports"][0]["is_read_only"], true, "{export}");
    assert!(copied(&place, &uri, &other) == content);
    info(&uri, &stranger).expect_err("a certificate of another authority");
    let plain = uri.replace("nbds://", "nbd://");
    info(&plain, &server).expect_err("without encryption");
    // On this host's own socket nothing is encrypted, and the owner gets in.
    let local = view["uris"][1].as_str().expect("the daemon's own socket");
    assert!(local.starts_with("nbd+unix:"), "{local}");
    let done = Command::new("nbdinfo").args(["--size", local]).output().expect("nbdinfo runs");
    assert!(done.status.success());
    running.signal(Signal::TERM);
    running.end().code(0);
}

#[test]
fn certificates_that_cannot_be_used_are_told() {
    let place = with_backup(&noise(22, 64 << 10));
    let nowhere = place.text("nowhere");
    let refused = place.run(&["mountd", "--tls-certificates", &nowhere]).code(2);
    assert!(refused.stderr.contains("server-cert.pem"), "{}", refused.stderr);
    // A rule that nobody can meet.
    let running = super::mountd::daemon(&place);
    let refused = place.run(&["mount", "nbd", "web01", "--allow", "dns:kvm1.example"]).code(2);
    assert!(refused.stderr.contains("--tls-certificates"), "{}", refused.stderr);
    running.signal(Signal::TERM);
    running.end().code(0);
}
