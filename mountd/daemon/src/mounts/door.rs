//! Mounts as NBD exports: one table for all, served over sockets that all mounts share and over sockets of their own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use backstay_api::mountd::{ClientView, Listen as ListenText};
use backstay_api::{Refusal, RefusalKind};
use backstay_blockdev::BlockDevice;
use backstay_nbd::server::{
    Access, Attached, BoundAddress, ClientInfo, ExportInfo, ExportSpec, ExportTable, Exports,
    Listen, OpenError, Opened, Peer, Permission, ServerConfig, ServerHandle, Source, Tls, Who,
    export_uri,
};
use jiff::Timestamp;
use parking_lot::Mutex;

use super::record::Record;
use crate::{Error, ErrorKind};

/// Addresses of its own that a mount may have.
pub(super) const MAX_LISTEN: usize = 16;
/// Rules that a mount may have.
pub(super) const MAX_RULES: usize = 1024;

/// All that is served.
#[derive(Debug)]
pub(super) struct Door {
    table: Arc<ExportTable>,
    config: ServerConfig,
    socket: PathBuf,
    /// Servers of the sockets that all mounts share; the first has the Unix socket.
    shared: Mutex<Vec<ServerHandle>>,
    /// Who may use each mount, to let people in again.
    access: Mutex<BTreeMap<String, Access>>,
}

/// A mount that is served.
#[derive(Debug)]
pub(super) struct Served {
    id: String,
    own: Vec<ServerHandle>,
    shared: Vec<BoundAddress>,
    /// Whether what goes over TCP is encrypted.
    tls: bool,
    /// The addresses of its own, with real ports.
    pub(super) bound: Vec<ListenText>,
}

impl Served {
    /// Where clients find it; the addresses of its own first.
    pub(super) fn uris(&self) -> Vec<String> {
        let own = self.own.iter().flat_map(ServerHandle::addresses);
        own.chain(&self.shared).map(|address| export_uri(address, &self.id, self.tls)).collect()
    }
}

/// One export of a table, which is also the default one.
#[derive(Debug)]
struct OnlyOne {
    table: Arc<ExportTable>,
    id: String,
}

impl OnlyOne {
    fn is_it(&self, name: &str) -> bool {
        name.is_empty() || name == self.id
    }
}

impl Exports for OnlyOne {
    fn list(&self, client: &ClientInfo) -> Vec<ExportInfo> {
        let mut list = Exports::list(&*self.table, client);
        list.retain(|export| export.name == self.id);
        list
    }

    fn open(&self, name: &str, client: &ClientInfo) -> Result<Opened, OpenError> {
        if self.is_it(name) { self.table.open(&self.id, client) } else { Err(OpenError::Unknown) }
    }

    fn is_known(&self, name: &str, client: &ClientInfo) -> bool {
        self.is_it(name) && self.table.is_known(&self.id, client)
    }

    fn has_presence(&self, name: &str, client: &ClientInfo) -> bool {
        self.is_it(name) && self.table.has_presence(&self.id, client)
    }
}

impl Door {
    /// Serves nothing yet, at `socket` and `listen`.
    pub(super) fn open(
        socket: PathBuf,
        listen: Vec<Listen>,
        config: ServerConfig,
    ) -> Result<Self, Error> {
        let table = Arc::new(ExportTable::new());
        let door =
            Self { table, config, socket, shared: Mutex::default(), access: Mutex::default() };
        let mut shared = vec![door.share()?];
        for listen in listen {
            let config = door.config_for(&listen);
            let server = ServerHandle::start(vec![listen], door.table.clone(), config);
            shared.push(server.map_err(cannot_listen)?);
        }
        *door.shared.lock() = shared;
        Ok(door)
    }

    /// Whether what goes over TCP is encrypted.
    fn tls(&self) -> bool {
        !matches!(self.config.tls, Tls::Off)
    }

    fn config_for(&self, listen: &Listen) -> ServerConfig {
        let tls = match listen {
            Listen::Tcp(_) => self.config.tls.clone(),
            Listen::Unix(_) => Tls::Off,
        };
        ServerConfig { tls, ..self.config.clone() }
    }

    /// A server of the Unix socket.
    fn share(&self) -> Result<ServerHandle, Error> {
        let listen = Listen::Unix(self.socket.clone());
        let config = self.config_for(&listen);
        let server =
            ServerHandle::start(vec![listen], self.table.clone(), config).map_err(cannot_listen)?;
        // Any user may connect; the kernel tells who it is, and each mount knows whom it lets in.
        std::fs::set_permissions(&self.socket, std::fs::Permissions::from_mode(0o666)).map_err(
            |e| Error::os(format!("{}: cannot open to users", self.socket.display()), e),
        )?;
        Ok(server)
    }

    /// The addresses that all mounts share.
    pub(super) fn addresses(&self) -> Vec<String> {
        let shared = self.shared.lock();
        let mut all: Vec<String> =
            shared.iter().flat_map(ServerHandle::addresses).map(ToString::to_string).collect();
        all.dedup();
        all
    }

    /// Refuses what could not be served.
    pub(super) fn check(&self, allow: &[String], listen: &[ListenText]) -> Result<(), Refusal> {
        check(allow, listen, self.tls())
    }

    /// Serves a device under the name of its mount.
    pub(super) fn serve(
        &self,
        record: &Record,
        device: Arc<dyn BlockDevice>,
    ) -> Result<Served, Refusal> {
        let id = &record.id;
        let access = access(record)?;
        let time = record.point_time.strftime("%Y-%m-%d %H:%M:%SZ");
        let how = if record.writable { "writable" } else { "read-only" };
        let disk = record.disks.first().map(|disk| disk.name.as_str()).unwrap_or_default();
        let spec = ExportSpec {
            name: id.clone(),
            description: format!("{} {time} {disk}, {how}", record.machine),
            source: Source::Device(device),
            access: access.clone(),
        };
        let failed = |e: backstay_nbd::Error| super::refusal(&cannot_listen(e)).what(id);
        self.table.add(spec).map_err(failed)?;
        let mut served = Served {
            id: id.clone(),
            own: Vec::new(),
            shared: self.shared_addresses(),
            tls: self.tls(),
            bound: Vec::new(),
        };
        for text in &record.listen {
            let started = listen(text).and_then(|listen| {
                let only = Arc::new(OnlyOne { table: self.table.clone(), id: id.clone() });
                let config = self.config_for(&listen);
                ServerHandle::start(vec![listen], only, config).map_err(failed)
            });
            match started {
                Ok(server) => {
                    served.bound.extend(server.addresses().iter().map(bound));
                    served.own.push(server);
                }
                Err(why) => {
                    self.stop_serving(served);
                    return Err(why);
                }
            }
        }
        self.access.lock().insert(id.clone(), access);
        Ok(served)
    }

    fn shared_addresses(&self) -> Vec<BoundAddress> {
        let shared = self.shared.lock();
        let mut all: Vec<BoundAddress> =
            shared.iter().flat_map(ServerHandle::addresses).cloned().collect();
        all.dedup();
        all
    }

    /// Ends a mount's clients and stops its servers. When it returns no request is under way.
    pub(super) fn stop_serving(&self, served: Served) {
        self.access.lock().remove(&served.id);
        if let Some(removed) = self.table.remove(&served.id) {
            let patience = self.config.end_grace + self.config.stop_grace;
            if !removed.wait(patience) {
                tracing::warn!(id = served.id, "clients are still attached to a mount that ended");
            }
        }
        for server in served.own {
            if let Err(error) = server.stop() {
                tracing::warn!(id = served.id, %error, "a server did not end well");
            }
        }
    }

    /// Who is attached to a mount.
    pub(super) fn clients(&self, id: &str) -> Vec<ClientView> {
        self.table.attached(id).into_iter().map(|client| self.client_view(id, client)).collect()
    }

    fn client_view(&self, id: &str, attached: Attached) -> ClientView {
        let access = self.access.lock();
        let permission = access.get(id).and_then(|access| access.of(&attached.client));
        let peer = match attached.client.peer {
            Peer::Tcp(address) => address.to_string(),
            Peer::Unix { uid, pid: Some(pid), .. } => format!("{} (pid {pid})", user_name(uid)),
            Peer::Unix { uid, pid: None, .. } => user_name(uid),
        };
        ClientView {
            peer,
            initiator: None,
            session: None,
            since: Timestamp::try_from(attached.since).unwrap_or(Timestamp::UNIX_EPOCH),
            writable: permission == Some(Permission::ReadWrite),
            requests: attached.requests,
            read_bytes: attached.read_bytes,
            written_bytes: attached.written_bytes,
        }
    }

    /// Lets nobody else in; clients that are attached stay.
    pub(super) fn close_to_new(&self, id: &str) {
        self.table.set_access(id, Access::nobody());
    }

    /// Lets people in again.
    pub(super) fn reopen(&self, id: &str) {
        if let Some(access) = self.access.lock().get(id) {
            self.table.set_access(id, access.clone());
        }
    }

    /// Reads the certificates again, and makes the shared socket again if somebody removed it. Clients that are connected notice nothing.
    pub(super) fn mend(&self) {
        if let Tls::Allowed(tls) | Tls::Required(tls) = &self.config.tls
            && let Err(error) = tls.reload()
        {
            tracing::warn!(%error, "the certificates cannot be read; the old ones stay in use");
        }
        let mut shared = self.shared.lock();
        if shared.is_empty() || self.socket.exists() {
            return;
        }
        match self.share() {
            Ok(server) => {
                tracing::warn!(socket = %self.socket.display(), "the socket was gone; made anew");
                shared.push(server);
            }
            Err(error) => tracing::error!(%error, "the socket is gone and cannot be made anew"),
        }
    }

    /// Stops the shared servers.
    pub(super) fn close(&self) {
        for server in self.shared.lock().drain(..) {
            if let Err(error) = server.stop() {
                tracing::warn!(%error, "a server did not end well");
            }
        }
    }
}

/// Whether a rule asks for a certificate.
fn needs_certificate(who: &Who) -> bool {
    matches!(who, Who::Fingerprint(_) | Who::DnsName(_))
}

/// Refuses what could not be served.
fn check(allow: &[String], listen_at: &[ListenText], tls: bool) -> Result<(), Refusal> {
    if allow.len() > MAX_RULES || listen_at.len() > MAX_LISTEN {
        return Err(Refusal::new(RefusalKind::Usage, "too many rules or addresses"));
    }
    for text in allow {
        if needs_certificate(&rule(text)?.0) && !tls {
            return Err(Refusal::new(
                RefusalKind::Usage,
                "nobody can show a certificate: this daemon has none itself",
            )
            .what(text)
            .hint("backstay mountd --tls-certificates DIRECTORY"));
        }
    }
    for text in listen_at {
        let remote = matches!(listen(text)?, Listen::Tcp(at) if !at.ip().is_loopback());
        if remote && allow.is_empty() {
            return Err(Refusal::new(
                RefusalKind::Usage,
                "an address that other hosts reach needs to know whom to let in",
            )
            .hint("--allow 10.0.0.7"));
        }
    }
    Ok(())
}

fn listen(text: &ListenText) -> Result<Listen, Refusal> {
    match text {
        ListenText::Unix(path) => Ok(Listen::Unix(path.into())),
        ListenText::Tcp(address) => address.parse::<SocketAddr>().map(Listen::Tcp).map_err(|_| {
            Refusal::new(RefusalKind::Usage, "this is no address and port").what(address)
        }),
    }
}

fn bound(address: &BoundAddress) -> ListenText {
    match address {
        BoundAddress::Tcp(address) => ListenText::Tcp(address.to_string()),
        BoundAddress::Unix(path) => ListenText::Unix(path.display().to_string()),
    }
}

/// Who may use a mount: its owner and root, whom the rules name, and without rules whoever comes from this
/// host to an address of the mount's own.
fn access(record: &Record) -> Result<Access, Refusal> {
    let all = Permission::ReadWrite;
    let mut access =
        Access::nobody().allow(Who::User(record.owner_uid), all).allow(Who::User(0), all);
    if record.allow.is_empty() && !record.listen.is_empty() {
        for loopback in ["127.0.0.0/8", "::1"] {
            access = access.allow(addresses(loopback)?, all);
        }
    }
    for text in &record.allow {
        let (who, permission) = rule(text)?;
        access = access.allow(who, permission);
    }
    Ok(access)
}

/// `10.0.0.0/24`, `uid:1000`, `cert:HEX`, `dns:NAME`, each with `=ro` behind it for reading only.
fn rule(text: &str) -> Result<(Who, Permission), Refusal> {
    let (who, permission) = match text.rsplit_once('=') {
        Some((who, "ro")) => (who, Permission::ReadOnly),
        Some((who, "rw")) => (who, Permission::ReadWrite),
        Some(_) => return Err(bad_rule(text)),
        None => (text, Permission::ReadWrite),
    };
    let who = match who.split_once(':') {
        Some(("uid", number)) => Who::User(number.parse().map_err(|_| bad_rule(text))?),
        Some(("dns", name)) if !name.is_empty() => Who::DnsName(name.to_owned()),
        Some(("cert", print)) => {
            let plain: String = print.chars().filter(|c| *c != ':').collect();
            let bytes =
                blake3::Hash::from_hex(plain.to_ascii_lowercase()).map_err(|_| bad_rule(text))?;
            Who::Fingerprint(*bytes.as_bytes())
        }
        // Anything else with a colon is an IPv6 address.
        _ => addresses(who)?,
    };
    Ok((who, permission))
}

fn addresses(text: &str) -> Result<Who, Refusal> {
    text.parse().map(Who::Addresses).map_err(|_| bad_rule(text))
}

fn bad_rule(text: &str) -> Refusal {
    Refusal::new(RefusalKind::Usage, "this says not who may attach").what(text).hint(
        "--allow 10.0.0.7, 10.0.0.0/24, uid:64055, cert:SHA256 or dns:NAME, with =ro for reading only",
    )
}

fn cannot_listen(error: backstay_nbd::Error) -> Error {
    let os = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind);
    let kind = match os {
        Some(std::io::ErrorKind::AddrInUse) => ErrorKind::Busy,
        Some(std::io::ErrorKind::PermissionDenied) => ErrorKind::Denied,
        _ if error.kind() == backstay_nbd::ErrorKind::Invalid => ErrorKind::Busy,
        _ => ErrorKind::Io,
    };
    Error::with_source(kind, "cannot serve the mount", error)
}

/// A user's name, as the machine's own list has it.
pub(super) fn user_name(uid: u32) -> String {
    let list = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = list.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("uid {uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_people_write_them() {
        let is = |text: &str, who: Who, permission| {
            assert_eq!(rule(text).expect(text), (who, permission), "{text}");
        };
        let net = |text: &str| Who::Addresses(text.parse().expect("a range"));
        is("10.0.0.7", net("10.0.0.7/32"), Permission::ReadWrite);
        is("10.0.0.0/24=ro", net("10.0.0.0/24"), Permission::ReadOnly);
        is("fe80::1", net("fe80::1/128"), Permission::ReadWrite);
        is("uid:64055=rw", Who::User(64055), Permission::ReadWrite);
        is("dns:kvm2.example=ro", Who::DnsName("kvm2.example".into()), Permission::ReadOnly);
        let print = "AB".repeat(32);
        is(&format!("cert:{print}"), Who::Fingerprint([0xab; 32]), Permission::ReadWrite);
        for bad in ["", "10.0.0", "uid:x", "cert:12", "dns:", "10.0.0.7=no", "web01"] {
            assert_eq!(rule(bad).expect_err(bad).kind, RefusalKind::Usage);
        }
    }

    #[test]
    fn an_address_for_other_hosts_needs_rules() {
        let tcp = |text: &str| vec![ListenText::Tcp(text.to_owned())];
        assert!(check(&[], &tcp("127.0.0.1:0"), false).is_ok());
        assert!(check(&[], &tcp("0.0.0.0:10809"), false).is_err());
        assert!(check(&["10.0.0.7".to_owned()], &tcp("0.0.0.0:10809"), false).is_ok());
        assert!(check(&[], &tcp("nonsense"), false).is_err());
        let named = ["dns:kvm2".to_owned()];
        assert!(check(&named, &tcp("0.0.0.0:10809"), true).is_ok());
        assert!(check(&named, &tcp("0.0.0.0:10809"), false).is_err());
    }
}
