//! What to type on the client, for the tools people have.

use backstay_nbd::client::{Address, NbdUri};
use serde::Serialize;

use crate::units::shell_word;

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
    let mut all = vec![
        command("nbdinfo", format!("nbdinfo --map --totals {word}")),
        command("nbdcopy", format!("nbdcopy {word} {}", shell_word(&format!("{copy}.raw")))),
        command("qemu", format!("qemu-system-x86_64 {snapshot}-drive file={word},format=raw")),
    ];
    if let Some(to) = NbdUri::parse(uri).ok().map(|uri| kernel_address(&uri.address)) {
        let name = shell_word(export);
        let how = if read_only { "-readonly" } else { "-persist" };
        all.push(command("nbd-client", format!("nbd-client {to} /dev/nbd0 -name {name} {how}")));
    }
    all
}

fn kernel_address(address: &Address) -> String {
    match address {
        Address::Unix(path) => format!("-unix {}", shell_word(&path.display().to_string())),
        Address::Tcp(host, port) => format!("{host} {port}"),
    }
}
