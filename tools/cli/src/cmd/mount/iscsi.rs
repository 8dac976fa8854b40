//! `backstay mount iscsi`.

use std::net::{IpAddr, SocketAddr};

use backstay_api::mountd::{
    ChapRequest, IscsiRequest, IscsiView, Listen, MountRequest, MountView, Request,
};
use backstay_core::retention::Length;

use super::{nbd, shown};
use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::mountd;
use crate::output::note;

/// Serve the disks of a recovery point as an iSCSI target
///
/// All disks of the point, or one, become the logical units 0, 1 and so on of one target, in the point's order. The
/// mount daemon serves it, as with mount nbd: it stays until it is ended, its time is over, or nobody was logged in
/// for a day, and comes back under the same names after a restart of the daemon. With --writable what is written
/// goes to an overlay for each disk, and `mount end --save` makes one new recovery point of all of them.
///
/// Without --allow and --allow-initiator only this host gets in; an address that other hosts reach (--listen) needs
/// one of them. The name of an initiator is no proof of anything: use --chap. The daemon makes the secret and tells
/// it once; `mount show --secrets` tells it again. CHAP hides nothing but the secret: off this host everything
/// that is read and written goes over the network in the clear, unless it goes through a tunnel.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mount iscsi web01
  backstay mount iscsi web01@latest:disk0 --writable --limit 20G --for 4h --chap
  backstay mount iscsi web01 --listen 10.0.0.1:3260 --allow 10.0.0.7 --chap
  backstay mount iscsi web01 --listen 10.0.0.1:3260 --chap-mutual \\
      --allow-initiator iqn.1998-01.com.vmware:esx1=ro",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound,
        Exit::InUse, Exit::Refused,
    ]
))]
pub(crate) struct Args {
    /// The machine or disk: MACHINE, MACHINE@POINT, @ID, each with :DISK for one disk alone
    what: String,

    /// Let the disks be written to; the writes go to an overlay for each
    #[arg(long)]
    writable: bool,

    /// Most that may be written to each disk
    #[arg(long, value_name = "SIZE", requires = "writable", value_parser = crate::units::parse_size)]
    limit: Option<u64>,

    /// At the limit, let writes wait until it is raised or something is trimmed, instead of failing
    #[arg(long, requires = "writable")]
    pause_when_full: bool,

    /// Initiators must know a secret, which the daemon makes
    #[arg(long)]
    chap: bool,

    /// The target proves itself to initiators, too, with a secret of its own; includes --chap
    #[arg(long)]
    chap_mutual: bool,

    /// Secrets of 16 letters (96 bits) instead of 22 (132 bits): Windows takes no longer ones
    #[arg(long)]
    chap_short: bool,

    /// Let this initiator log in, by its name (iqn., eui., naa.); with =ro for reading only. With --allow, too, it must
    /// come from one of those addresses
    #[arg(long, value_name = "NAME")]
    allow_initiator: Vec<String>,

    /// Let initiators log in from this address (10.0.0.7, 10.0.0.0/24); with =ro for reading only
    #[arg(long, value_name = "ADDRESS")]
    allow: Vec<String>,

    /// Serve it at this address and port, too; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,

    /// End it after this time, when the initiators that are logged in then have left
    #[arg(long = "for", value_name = "LENGTH")]
    for_length: Option<Length>,

    /// End it then though initiators are logged in
    #[arg(long, requires = "for_length")]
    hard_end: bool,

    /// End it when nobody was logged in for this time [default: 1d]
    #[arg(long, value_name = "LENGTH")]
    idle: Option<Length>,

    /// What it is for; shown wherever mounts are listed
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let allow = rules(&args.allow, &args.allow_initiator);
    let is_remote = |address: &&SocketAddr| !address.ip().to_canonical().is_loopback();
    if let Some(address) = args.listen.iter().find(is_remote)
        && allow.is_empty()
    {
        return Err(CliError::usage(
            "other hosts can reach this address, and nobody is named that may",
        )
        .what(address.to_string())
        .hint("--allow 10.0.0.7, --allow-initiator NAME, or an address of this host alone"));
    }
    if args.chap_short && !(args.chap || args.chap_mutual) {
        return Err(CliError::usage(
            "--chap-short says what secrets are like, and none is asked for",
        )
        .hint("--chap, or --chap-mutual"));
    }
    let (repository, location, key) = ctx.open_for_daemon()?;
    let (point, disks) = view::find_disks(&repository.points()?, &args.what)?;
    let request = MountRequest {
        repository: nbd::absolute(&location.to_string()),
        key,
        machine: point.machine.clone(),
        point: point.id.to_string(),
        disks: disks.into_iter().map(|disk| disk.name).collect(),
        iscsi: Some(IscsiRequest {
            chap: match (args.chap_mutual, args.chap) {
                (true, _) => ChapRequest::Mutual,
                (false, true) => ChapRequest::Initiator,
                (false, false) => ChapRequest::None,
            },
            short_secrets: args.chap_short,
        }),
        files: None,
        writable: args.writable,
        limit_bytes: args.limit,
        pause_when_full: args.pause_when_full,
        for_seconds: nbd::for_seconds(args.for_length.as_ref())?,
        hard_end: args.hard_end,
        idle_seconds: nbd::idle_seconds(args.idle.as_ref(), args.for_length.as_ref())?,
        listen: args.listen.iter().map(|address| Listen::Tcp(address.to_string())).collect(),
        allow,
        reason: args.reason,
    };
    // The daemon holds the point by itself from here on.
    drop(repository);
    let view = mountd::ask_or_start(ctx, &Request::Mount(Box::new(request)))?;
    shown::mounted(ctx, &view)?;
    for warning in warnings(&view) {
        note(&warning);
    }
    Ok(Exit::Done)
}

/// What whoever opens a target to other hosts should know.
pub(super) fn warnings(view: &MountView) -> Vec<String> {
    let Some(IscsiView { portals, chap, .. }) = &view.iscsi else { return Vec::new() };
    let is_remote = |portal: &&String| {
        portal.parse::<SocketAddr>().is_ok_and(|at| !at.ip().to_canonical().is_loopback())
    };
    // One that others share is closed to other hosts where no rule lets them in.
    let Some(portal) = portals.iter().find(is_remote).filter(|_| !view.allow.is_empty()) else {
        return Vec::new();
    };
    let mut all = vec![format!(
        "warning: iSCSI is not encrypted: what is read and written goes over the network at {portal} in the clear"
    )];
    if chap.is_none() {
        all.push(format!(
            "warning: without --chap whoever reaches {portal} under an allowed name or address gets in; \
             initiators prove nothing"
        ));
    }
    all
}

/// The rules of a target: names of initiators, from the addresses that are given besides.
fn rules(allow: &[String], initiators: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    let (mut ranges, mut names) = (Vec::new(), Vec::new());
    for text in allow {
        let (who, access) = split(text);
        match who.split('/').next().map(str::parse::<IpAddr>) {
            Some(Ok(_)) => ranges.push((who, access)),
            // Whatever else: the daemon knows whether it is a rule.
            _ => all.push(text.clone()),
        }
    }
    names.extend(initiators.iter().map(|text| split(text)));
    if names.is_empty() || ranges.is_empty() {
        let either = names.iter().chain(&ranges);
        all.extend(either.map(|(who, access)| format!("{who}{access}")));
        return all;
    }
    for (name, access) in &names {
        for (range, also) in &ranges {
            // What one of the two does not allow is not allowed.
            let access = if access.is_empty() { also } else { access };
            all.push(format!("{name}@{range}{access}"));
        }
    }
    all
}

/// Who, and what is behind it.
fn split(text: &str) -> (&str, &str) {
    text.rfind('=').map_or((text, ""), |at| text.split_at(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(allow: &[&str], initiators: &[&str]) -> Vec<String> {
        let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        rules(&own(allow), &own(initiators))
    }

    #[test]
    fn names_come_from_the_addresses_given() {
        let none: Vec<String> = Vec::new();
        assert_eq!(made(&[], &[]), none);
        assert_eq!(made(&["10.0.0.7", "fe80::/10=ro"], &[]), ["10.0.0.7", "fe80::/10=ro"]);
        assert_eq!(made(&[], &["iqn.2001-01.com.x:y=ro"]), ["iqn.2001-01.com.x:y=ro"]);
        assert_eq!(
            made(&["10.0.0.7", "10.1.0.0/16=ro"], &["iqn.2001-01.a", "iqn.2001-01.b=ro"]),
            [
                "iqn.2001-01.a@10.0.0.7",
                "iqn.2001-01.a@10.1.0.0/16=ro",
                "iqn.2001-01.b@10.0.0.7=ro",
                "iqn.2001-01.b@10.1.0.0/16=ro"
            ]
        );
        // A whole rule is one, and what is none is told by the daemon.
        assert_eq!(
            made(&["iqn.2001-01.c@10.0.0.9", "nonsense"], &["iqn.2001-01.a"]),
            ["iqn.2001-01.c@10.0.0.9", "nonsense", "iqn.2001-01.a"]
        );
    }
}
