//! The arguments that say what is kept.

use std::num::NonZeroU32;

use backstay_core::retention::{AgeRule, Length, Rule, Rules};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::exit::CliError;

/// What is kept: each option keeps points by itself, and what none keeps goes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What is kept")]
pub(crate) struct RuleArgs {
    /// The newest N
    #[arg(long, value_name = "N")]
    keep_last: Option<NonZeroU32>,

    /// All up to this long before the machine's newest: 30d, 36h, 1y6mo
    #[arg(long, value_name = "LENGTH")]
    keep_within: Option<Length>,

    /// The newest of each of the last N hours that have points
    #[arg(long, value_name = "N")]
    keep_hourly: Option<NonZeroU32>,

    /// The newest of each of the last N days that have points
    #[arg(long, value_name = "N")]
    keep_daily: Option<NonZeroU32>,

    /// The newest of each of the last N weeks that have points; weeks begin on Monday
    #[arg(long, value_name = "N")]
    keep_weekly: Option<NonZeroU32>,

    /// The newest of each of the last N months that have points
    #[arg(long, value_name = "N")]
    keep_monthly: Option<NonZeroU32>,

    /// The newest of each of the last N years that have points
    #[arg(long, value_name = "N")]
    keep_yearly: Option<NonZeroU32>,

    /// All up to this age by the clock
    #[arg(long, value_name = "LENGTH")]
    keep_younger_than: Option<Length>,

    /// With --keep-younger-than: the newest N however old they are
    #[arg(long, value_name = "N", requires = "keep_younger_than", default_value_t = 1)]
    keep_at_least: u32,

    /// Let even a machine's newest and newest verified point go, when no option keeps them
    #[arg(long)]
    newest_may_go: bool,

    /// Only the points of this machine; those of others stay
    #[arg(long, short, value_name = "NAME")]
    machine: Option<String>,

    /// Where days begin, for example Europe/Berlin or UTC [default: this machine's zone]
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
}

impl RuleArgs {
    /// The machine that alone is meant, if one is.
    pub(crate) fn machine(&self) -> Option<&str> {
        self.machine.as_deref()
    }

    /// The rule the options make.
    pub(crate) fn rule(&self) -> Rule {
        Rule {
            last: self.keep_last,
            within: self.keep_within.clone(),
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            younger: self
                .keep_younger_than
                .clone()
                .map(|than| AgeRule { than, at_least: self.keep_at_least }),
            newest_may_go: self.newest_may_go,
        }
    }

    /// The rules for the whole repository.
    pub(crate) fn rules(&self) -> Rules {
        match &self.machine {
            Some(machine) => Rules::only(machine, self.rule()),
            None => Rules::all(self.rule()),
        }
    }

    /// The time of the plan, in the zone whose days count.
    pub(crate) fn now(&self) -> Result<Zoned, CliError> {
        let zone = match &self.time_zone {
            None => TimeZone::system(),
            Some(name) => zone(name).ok_or_else(|| {
                CliError::usage("this machine knows no such time zone")
                    .what(name)
                    .hint("--time-zone UTC, or a name as in /usr/share/zoneinfo (package tzdata)")
            })?,
        };
        Ok(Timestamp::now().to_zoned(zone))
    }
}

/// UTC needs no table of zones.
fn zone(name: &str) -> Option<TimeZone> {
    if name.eq_ignore_ascii_case("utc") { Some(TimeZone::UTC) } else { TimeZone::get(name).ok() }
}
