//! `backstay session fence`.

use backstay_store::{Cause, ErrorKind, PointId, Repository, SessionInfo, SessionKind};
use serde::Serialize;

use super::SessionView;
use crate::cmd::{keepers, view};
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, clean};

/// Give up a session whose process hangs or is gone
///
/// A backup that is fenced cannot commit any more. If its process still lives it fails at the end,
/// and loses its own work only: recovery points and other backups stay as they are. A reader that is
/// fenced loses its hold, so that a collection may take what it reads once that is removed.
/// Sessions whose process was on this host and is gone are given up by the next collection anyway.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay session fence 8xk2q7
  backstay session fence 8xk2q7 --reason 'the host burned down' --yes",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound,
        Exit::NeedsConfirmation,
    ]
))]
pub(crate) struct Args {
    /// The session's id or its beginning, six letters at least, as session list shows it. A session
    /// that cannot be read is named by its whole id
    session: String,

    /// Why, for the record; its process is told
    #[arg(long, value_name = "TEXT", default_value = "given up by hand")]
    reason: String,
}

#[derive(Serialize)]
struct Document {
    fenced: String,
    /// Nothing where its record cannot be read.
    session: Option<SessionView>,
    /// It had committed its recovery point before; that stays.
    committed: bool,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let (id, session) = find(&repository, &args.session).map_err(|error| {
        error.what(args.session.clone()).hint("backstay session list      shows the open sessions")
    })?;
    let view = session.as_ref().map(|(session, all)| SessionView::new(session, all));
    let kind = session.as_ref().map(|(session, _)| session.kind);
    let short = view.as_ref().map_or_else(|| id.to_string(), |view| view.short_id.clone());
    let who = view.as_ref().map_or_else(|| short.clone(), SessionView::told);
    ctx.confirm(&format!("fence session {}: {}", clean(&who), loses(kind)), &short)?;
    let cause = Cause { by: keepers::me(), reason: args.reason };
    let committed = repository.fence_session(id, &cause)?;
    let document = Document { fenced: id.to_string(), session: view, committed };
    ctx.out.summary(Stream::Stdout, &document, |to| {
        if committed {
            to.push_str(&format!("session {short} had committed already: @{short} stays\n"));
        } else {
            to.push_str(&format!("fenced session {}\n", clean(&who)));
        }
    })?;
    Ok(Exit::Done)
}

/// What its process loses if it still lives.
fn loses(kind: Option<SessionKind>) -> &'static str {
    match kind {
        Some(SessionKind::Writer) => {
            "if its process still lives it will fail, and lose its own work only"
        }
        Some(SessionKind::Reader) => {
            "if its process still lives, what it reads is held no more, and its reads fail once \
             that is removed and collected"
        }
        None => {
            "its record cannot be read; if its process still lives it will fail, and lose its own \
             work only"
        }
    }
}

type Found = (PointId, Option<(SessionInfo, Vec<SessionInfo>)>);

fn find(repository: &Repository, text: &str) -> Result<Found, CliError> {
    match repository.sessions() {
        Ok(all) => {
            let id = view::by_prefix("open session", text, all.iter().map(|session| session.id))?;
            let session = all.iter().find(|session| session.id == id).cloned();
            Ok((id, session.map(|session| (session, all))))
        }
        // One of them cannot be read, which is the reason to give it up.
        Err(error) if error.kind() == ErrorKind::Damaged => match text.parse() {
            Ok(id) => Ok((id, None)),
            Err(_) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}
