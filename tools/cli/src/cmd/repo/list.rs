//! `backstay repo list`.

use serde::Serialize;

use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Align, Table};
use crate::{registry, units};

/// List the repositories this machine has used
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail("  backstay repo list --json", &[]))]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Document {
    repositories: Vec<View>,
}

#[derive(Serialize)]
struct View {
    id: String,
    location: String,
    last_used: String,
}

pub(crate) fn run(ctx: &Ctx, _args: Args) -> Result<Exit, CliError> {
    let records = registry::list(&ctx.cache_dir()?)?;
    let document = Document {
        repositories: records
            .iter()
            .map(|record| View {
                id: record.id.clone(),
                location: record.location.clone(),
                last_used: units::utc_time(record.last_used),
            })
            .collect(),
    };
    ctx.out.report(&document, |to| {
        if records.is_empty() {
            to.push_str("this machine has used no repository yet\n");
            to.push_str("make one:  backstay repo init --repo LOCATION\n");
            return;
        }
        let mut table = Table::new(&[
            ("LOCATION", Align::Left),
            ("LAST USED", Align::Left),
            ("ID", Align::Left),
        ]);
        for record in &records {
            table.row([
                record.location.clone(),
                units::local_time(record.last_used),
                record.id.clone(),
            ]);
        }
        table.render(to);
    })?;
    Ok(Exit::Done)
}
