//! What to type where an iSCSI target is to be attached, for the initiators people have.

use std::net::SocketAddr;

use backstay_api::mountd::{ChapView, IscsiView, MountView};

use super::clients::ClientCommand;
use crate::units::shell_word;

/// Stands for a secret that is not shown.
const HIDDEN: &str = "SECRET";
/// Stands for the name of ESXi's adapter (`esxcli iscsi adapter list`).
const ADAPTER: &str = "vmhba64";

/// Where initiators connect.
struct Portal {
    host: String,
    port: u16,
}

impl Portal {
    /// The nearest that other hosts reach, else one of this host.
    fn of(portals: &[String]) -> Option<Self> {
        let all = || portals.iter().filter_map(|text| text.parse::<SocketAddr>().ok());
        let at = all().find(|at| !at.ip().to_canonical().is_loopback()).or_else(|| all().next())?;
        let host = match at.ip() {
            // All addresses of this host, and no address of its own.
            ip if ip.is_unspecified() => {
                rustix::system::uname().nodename().to_string_lossy().into_owned()
            }
            ip => ip.to_string(),
        };
        Some(Self { host, port: at.port() })
    }

    /// With an IPv6 address in brackets.
    fn text(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// A name and a secret, as they are typed.
fn credentials(chap: &ChapView) -> (&str, &str) {
    (&chap.name, chap.secret.as_ref().map_or(HIDDEN, |secret| secret.reveal()))
}

/// Commands that attach a target's units and let go of them, in the order to be typed. Secrets are in them where `view` has them.
pub(super) fn commands(view: &MountView, iscsi: &IscsiView) -> Vec<ClientCommand> {
    let Some(portal) = Portal::of(&iscsi.portals) else { return Vec::new() };
    let mut all = Vec::new();
    let mut add = |tool, commands: Vec<String>| {
        all.extend(commands.into_iter().map(|command| ClientCommand { tool, command }));
    };
    add("open-iscsi", open_iscsi(iscsi, &portal));
    add("Windows", windows(iscsi, &portal));
    add("ESXi", esxi(iscsi, &portal));
    add("qemu", qemu(view, iscsi, &portal));
    all
}

fn open_iscsi(iscsi: &IscsiView, portal: &Portal) -> Vec<String> {
    let portal = portal.text();
    let node = format!("iscsiadm -m node -T {} -p {}", iscsi.target, shell_word(&portal));
    let set = |name: &str, value: &str| format!("{node} -o update -n {name} -v {value}");
    let mut all = vec![format!("iscsiadm -m discovery -t sendtargets -p {}", shell_word(&portal))];
    if let Some(chap) = &iscsi.chap {
        let (name, secret) = credentials(chap);
        all.push(set("node.session.auth.authmethod", "CHAP"));
        all.push(set("node.session.auth.username", name));
        all.push(set("node.session.auth.password", secret));
    }
    if let Some(chap) = &iscsi.chap_target {
        let (name, secret) = credentials(chap);
        all.push(set("node.session.auth.username_in", name));
        all.push(set("node.session.auth.password_in", secret));
    }
    all.push(format!("{node} --login"));
    all.push(format!("{node} --logout"));
    all
}

/// The longest secret that Windows' initiator takes.
const WINDOWS_SECRET_MAX: usize = 16;

/// PowerShell. In single quotes nothing means anything to it.
fn windows(iscsi: &IscsiView, portal: &Portal) -> Vec<String> {
    let at =
        format!("-TargetPortalAddress '{}' -TargetPortalPortNumber {}", portal.host, portal.port);
    let mut all = vec!["Start-Service MSiSCSI".to_owned(), format!("New-IscsiTargetPortal {at}")];
    let mut connect = format!("Connect-IscsiTarget -NodeAddress '{}' {at}", iscsi.target);
    let known = [&iscsi.chap, &iscsi.chap_target].into_iter().flatten();
    if known.filter_map(|chap| chap.secret.as_ref()).any(|s| s.reveal().len() > WINDOWS_SECRET_MAX)
    {
        return vec![format!(
            "# takes secrets of {WINDOWS_SECRET_MAX} letters at most: mount with --chap-short"
        )];
    }
    if let Some(chap) = &iscsi.chap {
        let (name, secret) = credentials(chap);
        let mutual = iscsi.chap_target.as_ref().map(credentials);
        if let Some((_, secret)) = mutual {
            // Windows has one for all targets, and no name.
            all.push(format!("Set-IscsiChapSecret -ChapSecret '{secret}'"));
        }
        let how = if mutual.is_some() { "MUTUALCHAP" } else { "ONEWAYCHAP" };
        connect.push_str(&format!(
            " -AuthenticationType {how} -ChapUsername '{name}' -ChapSecret '{secret}'"
        ));
    }
    all.push(connect);
    all.push(format!("Disconnect-IscsiTarget -NodeAddress '{}' -Confirm:$false", iscsi.target));
    all
}

fn esxi(iscsi: &IscsiView, portal: &Portal) -> Vec<String> {
    let at = format!(
        "--adapter={ADAPTER} --address={} --name={}",
        shell_word(&portal.text()),
        iscsi.target
    );
    let mut all = vec![
        "esxcli iscsi software set --enabled=true".to_owned(),
        format!("esxcli iscsi adapter discovery statictarget add {at}"),
    ];
    let sides = [("uni", &iscsi.chap), ("mutual", &iscsi.chap_target)];
    for (direction, chap) in sides.into_iter().filter_map(|(d, chap)| Some((d, chap.as_ref()?))) {
        let (name, secret) = credentials(chap);
        all.push(format!(
            "esxcli iscsi adapter target portal auth chap set {at} --direction={direction} \
             --level=required --authname={name} --secret={secret}"
        ));
    }
    all.push(format!("esxcli storage core adapter rescan --adapter={ADAPTER}"));
    all.push(format!("esxcli iscsi adapter discovery statictarget remove {at}"));
    all.push(format!("esxcli iscsi session remove --adapter={ADAPTER} --name={}", iscsi.target));
    all
}

fn qemu(view: &MountView, iscsi: &IscsiView, portal: &Portal) -> Vec<String> {
    let snapshot = if view.writable { "" } else { " -snapshot" };
    let who = iscsi.chap.as_ref().map(credentials);
    let who = who.map(|(name, secret)| format!("{name}%{secret}@")).unwrap_or_default();
    let mut machine = format!("qemu-system-x86_64{snapshot}");
    let mut all = Vec::new();
    for disk in &view.disks {
        let lun = disk.lun.unwrap_or_default();
        let uri = format!("iscsi://{who}{}/{}/{lun}", portal.text(), iscsi.target);
        machine.push_str(&format!(" -drive file={},format=raw", shell_word(&uri)));
        let copy = shell_word(&format!("{}.raw", disk.name));
        all.push(format!("qemu-img convert -p -O raw {} {copy}", shell_word(&uri)));
    }
    all.push(machine);
    all
}

#[cfg(test)]
mod tests {
    use backstay_api::mountd::{DiskView, MountState, Secret};
    use jiff::Timestamp;

    use super::*;

    const TARGET: &str = "iqn.2026-11.internal.backstay:web01.m-4x7kq2";

    fn chap(name: &str, secret: Option<&str>) -> ChapView {
        let secret = secret.map(|secret| Secret::new(secret.to_owned()));
        ChapView { name: name.to_owned(), secret }
    }

    fn typed(portals: &[&str], iscsi: IscsiView) -> Vec<String> {
        let iscsi =
            IscsiView { portals: portals.iter().map(|p| (*p).to_owned()).collect(), ..iscsi };
        let disk = |lun: u16| DiskView {
            name: format!("disk{lun}"),
            size_bytes: 1 << 30,
            lun: Some(lun),
            overlay: None,
        };
        let view = MountView {
            id: "m-4x7kq2".to_owned(),
            kind: "iscsi".to_owned(),
            state: MountState::Active,
            problem: None,
            repository: String::new(),
            machine: "web01".to_owned(),
            point: String::new(),
            point_time: Timestamp::UNIX_EPOCH,
            disks: vec![disk(0), disk(1)],
            writable: true,
            allow: Vec::new(),
            uris: Vec::new(),
            iscsi: Some(iscsi.clone()),
            directory: None,
            owner: String::new(),
            reason: String::new(),
            created: Timestamp::UNIX_EPOCH,
            ends: None,
            idle_seconds: None,
            clients: Vec::new(),
        };
        let all = commands(&view, &iscsi);
        all.into_iter().map(|c| format!("{}: {}", c.tool, c.command)).collect()
    }

    fn open() -> IscsiView {
        IscsiView { target: TARGET.to_owned(), portals: Vec::new(), chap: None, chap_target: None }
    }

    #[test]
    fn an_open_target_of_this_host() {
        let all = typed(&["127.0.0.1:3260"], open());
        assert_eq!(
            all,
            [
                "open-iscsi: iscsiadm -m discovery -t sendtargets -p 127.0.0.1:3260".to_owned(),
                format!("open-iscsi: iscsiadm -m node -T {TARGET} -p 127.0.0.1:3260 --login"),
                format!("open-iscsi: iscsiadm -m node -T {TARGET} -p 127.0.0.1:3260 --logout"),
                "Windows: Start-Service MSiSCSI".to_owned(),
                "Windows: New-IscsiTargetPortal -TargetPortalAddress '127.0.0.1' -TargetPortalPortNumber 3260"
                    .to_owned(),
                format!(
                    "Windows: Connect-IscsiTarget -NodeAddress '{TARGET}' -TargetPortalAddress '127.0.0.1' \
                     -TargetPortalPortNumber 3260"
                ),
                format!("Windows: Disconnect-IscsiTarget -NodeAddress '{TARGET}' -Confirm:$false"),
                "ESXi: esxcli iscsi software set --enabled=true".to_owned(),
                format!(
                    "ESXi: esxcli iscsi adapter discovery statictarget add --adapter=vmhba64 \
                     --address=127.0.0.1:3260 --name={TARGET}"
                ),
                "ESXi: esxcli storage core adapter rescan --adapter=vmhba64".to_owned(),
                format!(
                    "ESXi: esxcli iscsi adapter discovery statictarget remove --adapter=vmhba64 \
                     --address=127.0.0.1:3260 --name={TARGET}"
                ),
                format!("ESXi: esxcli iscsi session remove --adapter=vmhba64 --name={TARGET}"),
                format!("qemu: qemu-img convert -p -O raw iscsi://127.0.0.1:3260/{TARGET}/0 disk0.raw"),
                format!("qemu: qemu-img convert -p -O raw iscsi://127.0.0.1:3260/{TARGET}/1 disk1.raw"),
                format!(
                    "qemu: qemu-system-x86_64 -drive file=iscsi://127.0.0.1:3260/{TARGET}/0,format=raw \
                     -drive file=iscsi://127.0.0.1:3260/{TARGET}/1,format=raw"
                ),
            ]
        );
        assert!(typed(&[], open()).is_empty(), "it is not served");
    }

    #[test]
    fn secrets_of_both_directions_at_an_address_that_others_reach() {
        let iscsi = IscsiView {
            chap: Some(chap("m-4x7kq2", Some("aaaaaaaaaaaaaaaa"))),
            chap_target: Some(chap("m-4x7kq2-target", Some("bbbbbbbbbbbbbbbb"))),
            ..open()
        };
        let all = typed(&["127.0.0.1:3260", "[fd00::1]:3261"], iscsi);
        let has =
            |text: &str| assert!(all.iter().any(|line| line.contains(text)), "{text}: {all:#?}");
        has("-p '[fd00::1]:3261' -o update -n node.session.auth.authmethod -v CHAP");
        has("-n node.session.auth.username -v m-4x7kq2");
        has("-n node.session.auth.password -v aaaaaaaaaaaaaaaa");
        has("-n node.session.auth.username_in -v m-4x7kq2-target");
        has("-n node.session.auth.password_in -v bbbbbbbbbbbbbbbb");
        has("-TargetPortalAddress 'fd00::1' -TargetPortalPortNumber 3261");
        has("Set-IscsiChapSecret -ChapSecret 'bbbbbbbbbbbbbbbb'");
        has(
            "-AuthenticationType MUTUALCHAP -ChapUsername 'm-4x7kq2' -ChapSecret 'aaaaaaaaaaaaaaaa'",
        );
        has("--direction=uni --level=required --authname=m-4x7kq2 --secret=aaaaaaaaaaaaaaaa");
        has(
            "--direction=mutual --level=required --authname=m-4x7kq2-target --secret=bbbbbbbbbbbbbbbb",
        );
        has("'iscsi://m-4x7kq2%aaaaaaaaaaaaaaaa@[fd00::1]:3261/");
    }

    #[test]
    fn what_is_not_told_is_not_typed() {
        let iscsi = IscsiView { chap: Some(chap("m-4x7kq2", None)), ..open() };
        let all = typed(&["10.0.0.1:3260"], iscsi);
        assert!(all.iter().any(|line| line.contains("auth.password -v SECRET")), "{all:#?}");
        assert!(all.iter().any(|line| line.contains("ONEWAYCHAP")), "{all:#?}");
    }
}
