//! Damage, as check, verify and repair tell it.

use backstay_store::{Damage, DamageKind};
use serde::Serialize;

use crate::output::clean;
use crate::units;

/// One finding.
#[derive(Serialize)]
pub(super) struct Finding {
    kind: &'static str,
    pack: Option<String>,
    /// An index object; no data is lost with it.
    index: Option<String>,
    /// An object that is neither pack nor point, by its name in the repository.
    object: Option<String>,
    machine: Option<String>,
    point: Option<String>,
    disk: Option<String>,
    offset_bytes: Option<u64>,
    len_bytes: Option<u64>,
    reason: String,
}

impl From<Damage> for Finding {
    fn from(damage: Damage) -> Self {
        let mut finding = Self {
            kind: "pack",
            pack: None,
            index: None,
            object: None,
            machine: None,
            point: None,
            disk: None,
            offset_bytes: None,
            len_bytes: None,
            reason: damage.reason,
        };
        match damage.kind {
            DamageKind::Pack(pack) => finding.pack = Some(pack.to_string()),
            DamageKind::Index(index) => {
                finding.kind = "index";
                finding.index = Some(index.to_string());
            }
            DamageKind::Object(name) => {
                finding.kind = "object";
                finding.object = Some(name);
            }
            DamageKind::Point(point) => {
                finding.kind = "point";
                finding.point = Some(point.to_string());
            }
            DamageKind::Disk { machine, point, disk, offset_bytes, len_bytes } => {
                finding.kind = "disk";
                finding.machine = Some(machine);
                finding.point = Some(point.to_string());
                finding.disk = Some(disk);
                finding.offset_bytes = Some(offset_bytes);
                finding.len_bytes = Some(len_bytes);
            }
        }
        finding
    }
}

impl Finding {
    /// The damaged object as a user would name it.
    fn object(&self) -> String {
        let short = |id: &Option<String>| {
            id.as_deref().unwrap_or_default().chars().take(6).collect::<String>()
        };
        match (&self.machine, &self.disk, &self.pack, &self.object) {
            (Some(machine), Some(disk), ..) => {
                format!("{}@{}:{}", clean(machine), short(&self.point), clean(disk))
            }
            (_, _, Some(pack), _) => format!("pack {pack}"),
            (_, _, _, Some(name)) => clean(name),
            _ => match &self.index {
                Some(index) => format!("index object {index}"),
                None => format!("@{}", self.point.as_deref().unwrap_or_default()),
            },
        }
    }
}

/// The findings for people, one a line.
pub(super) fn show(to: &mut String, word: &str, findings: &[Finding], left_out: u64) {
    for finding in findings {
        let range = match (finding.offset_bytes, finding.len_bytes) {
            (Some(offset), Some(len)) => format!("  {} at {offset}", units::size(len)),
            _ => String::new(),
        };
        to.push_str(&format!("{word}  {}{range}  {}\n", finding.object(), clean(&finding.reason)));
    }
    if left_out > 0 {
        to.push_str(&format!("and {left_out} more\n"));
    }
}
