//! `backstay repo key list`.

use backstay_store::{KeySlotInfo, Repository};
use serde::Serialize;

use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Align, Table};
use crate::units;

/// List the keys that open a repository; needs none of them
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay repo key list --repo /srv/backup",
    &[Exit::NoRepository, Exit::Damaged]
))]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Document {
    keys: Vec<SlotView>,
}

/// A key slot in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct SlotView {
    id: String,
    kind: &'static str,
    label: String,
    created: String,
    /// The key it was made to take the place of, if that one still opens the repository too.
    replaces: Option<String>,
}

impl From<&KeySlotInfo> for SlotView {
    fn from(slot: &KeySlotInfo) -> Self {
        Self {
            id: slot.id.to_string(),
            kind: super::kind(slot),
            label: slot.label.clone(),
            created: units::utc_time(slot.created),
            replaces: slot.replaces.map(|old| old.to_string()),
        }
    }
}

pub(crate) fn run(ctx: &Ctx, _args: Args) -> Result<Exit, CliError> {
    let location = ctx.location()?;
    ctx.config(&location)?;
    let slots = Repository::key_slots(&location)?;
    let document = Document { keys: slots.iter().map(SlotView::from).collect() };
    ctx.out.report(&document, |to| {
        if slots.is_empty() {
            to.push_str("the repository is not encrypted: there are no keys\n");
            return;
        }
        let mut table = Table::new(&[
            ("KEY", Align::Left),
            ("KIND", Align::Left),
            ("MADE", Align::Left),
            ("LABEL", Align::Left),
        ]);
        for slot in &slots {
            table.row([
                slot.id.to_string(),
                super::kind(slot).to_owned(),
                units::local_time(slot.created),
                slot.label.clone(),
            ]);
        }
        table.render(to);
        for (new, old) in slots.iter().filter_map(|slot| Some((slot.id, slot.replaces?))) {
            to.push_str(&format!(
                "\nkey {new} was made to replace {old}, which still opens the repository:\n\
                 a rotation was interrupted, or is going on\n  \
                 backstay repo key remove {old} --yes      brings it to its end\n"
            ));
        }
    })?;
    Ok(Exit::Done)
}
