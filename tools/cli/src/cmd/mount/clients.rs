//! What to type on the client, for the tools people have.

use backstay_nbd::client::{Address, NbdUri};
use serde::Serialize;

use crate::units::shell_word;

/// Where QEMU's packages look for certificates.
const QEMU_CERTIFICATES: &str = "/etc/pki/qemu";
/// Where libnbd looks for them; nbd-client looks nowhere by itself.
const NBD_CERTIFICATES: &str = "/etc/pki/libnbd";

/// A command for a tool.
#[derive(Debug, Serialize)]
pub(super) struct ClientCommand {
    pub(super) tool: &'static str,
    pub(super) command: String,
}

/// Commands that read, and where it may be written attach, the export behind a URI. `copy` names the file a copy goes to.
pub(super) fn commands(uri: &str, export: &str, copy: &str, read_only: bool) -> Vec<ClientCommand> {
    let command = |tool, command| ClientCommand { tool, command };
    let word = shell_word(uri);
    let snapshot = if read_only { "-snapshot " } else { "" };
    let parsed = NbdUri::parse(uri).ok();
    let encrypted = parsed.as_ref().is_some_and(|uri| uri.tls.is_some());
    let drive = match parsed.as_ref().map(|uri| &uri.address) {
        // In a URI QEMU takes no certificates.
        Some(Address::Tcp(host, port)) if encrypted => format!(
            "-object tls-creds-x509,id=tls0,endpoint=client,dir={QEMU_CERTIFICATES} -drive driver=raw,\
             file.driver=nbd,file.server.type=inet,file.server.host={host},file.server.port={port},\
             file.export={},file.tls-creds=tls0",
            shell_word(export)
        ),
        _ => format!("-drive file={word},format=raw"),
    };
    let mut all = vec![
        command("nbdinfo", format!("nbdinfo --map --totals {word}")),
        command("nbdcopy", format!("nbdcopy {word} {}", shell_word(&format!("{copy}.raw")))),
        command("qemu", format!("qemu-system-x86_64 {snapshot}{drive}")),
    ];
    if let Some(to) = parsed.map(|uri| kernel_address(&uri.address)) {
        let name = shell_word(export);
        // Not -persist: over netlink, its usual way, the kernel does not connect anew whatever it is told.
        let how = if read_only { "-readonly -C 2" } else { "-C 2" };
        let tls = match encrypted {
            true => format!(
                " -cacertfile {NBD_CERTIFICATES}/ca-cert.pem -certfile {NBD_CERTIFICATES}/client-cert.pem \
                 -keyfile {NBD_CERTIFICATES}/client-key.pem"
            ),
            false => String::new(),
        };
        let text = format!("nbd-client {to} /dev/nbd0 -name {name} {how}{tls}");
        all.push(command("nbd-client", text));
    }
    all
}

fn kernel_address(address: &Address) -> String {
    match address {
        Address::Unix(path) => format!("-unix {}", shell_word(&path.display().to_string())),
        Address::Tcp(host, port) => format!("{host} {port}"),
    }
}
