//! The file of `backup --change-map`: JSON extents, as `nbdinfo --json` prints them.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use backstay_core::ranges::Ranges;
use serde::Deserialize;

use crate::exit::{CliError, Exit};

/// Longest file: about a million extents.
const FILE_MAX_BYTES: u64 = 128 << 20;

/// One extent. Nothing else may stand in it: a map of another kind must not pass for this one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Extent {
    offset: u64,
    length: u64,
    /// The flags of an NBD meta context; of a dirty bitmap, 1 is dirty.
    #[serde(rename = "type")]
    flags: Option<u64>,
    description: Option<String>,
}

impl Extent {
    /// Whether it may have changed; `None` if it is an extent of something else.
    fn changed(&self) -> Option<bool> {
        match (self.flags, self.description.as_deref()) {
            (None, None) => Some(true),
            (None | Some(1), Some("dirty")) => Some(true),
            (None | Some(0), Some("clean")) => Some(false),
            // Flags without a word for them may be those of a map of holes, where 0 is data.
            _ => None,
        }
    }
}

/// Reads a map: the ranges that may have changed.
pub(crate) fn read(path: &Path) -> Result<Ranges, CliError> {
    let shown = || path.display().to_string();
    let failed = |e: std::io::Error| CliError::io("cannot read the change map", &e).what(shown());
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_MAX_BYTES {
        let told = format!("the change map is larger than {FILE_MAX_BYTES} bytes");
        return Err(CliError::usage(told).what(shown()));
    }
    parse(&text).map_err(|e| e.what(shown()))
}

fn parse(text: &[u8]) -> Result<Ranges, CliError> {
    let wanted = r#"[{"offset": 65536, "length": 65536}, ...] lists what may have changed"#;
    let refused = |why: &str| CliError::usage(format!("this is no change map: {why}")).hint(wanted);
    let extents: Vec<Extent> = serde_json::from_slice(text).map_err(|e| refused(&e.to_string()))?;
    let mut changed = Vec::new();
    for extent in &extents {
        match extent.changed() {
            Some(true) => changed.push((extent.offset, extent.length)),
            Some(false) => {}
            None => {
                return Err(refused(&format!(
                    "the extent at {} is neither dirty nor clean",
                    extent.offset
                ))
                .hint("nbdinfo --json --map=qemu:dirty-bitmap:NAME URI      prints one"));
            }
        }
    }
    Ranges::from_any(changed).map_err(|e| {
        let mut told = CliError::from(e);
        told.exit = Exit::Usage;
        told
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn plain_extents_and_those_of_nbdinfo() {
        let plain = br#"[{"offset": 65536, "length": 10}, {"offset": 0, "length": 1}]"#;
        let ranges = parse(plain).expect("a map");
        assert_eq!((ranges.len(), ranges.total_bytes()), (2, 11));
        let nbdinfo = br#"[
{ "offset": 0, "length": 65536, "type": 0, "description": "clean"},
{ "offset": 65536, "length": 65536, "type": 1, "description": "dirty"},
{ "offset": 131072, "length": 917504, "type": 0, "description": "clean"}
]"#;
        let ranges = parse(nbdinfo).expect("a map");
        assert_eq!((ranges.len(), ranges.total_bytes()), (1, 65536));
        assert!(parse(b"[]").expect("nothing changed").is_empty());
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            // A map of holes, from nbdinfo and from qemu-img.
            r#"[{"offset": 0, "length": 9, "type": 0, "description": "data"}]"#,
            r#"[{"offset": 0, "length": 9, "type": 3, "description": "hole,zero"}]"#,
            r#"[{"start": 0, "length": 9, "depth": 0, "zero": false, "data": true}]"#,
            r#"[{"offset": 0, "length": 9, "type": 1}]"#,
            r#"[{"offset": 0, "length": 9, "type": 0, "description": "dirty"}]"#,
            r#"[{"offset": 0, "length": 9, "data": true}]"#,
            r#"[{"offset": 0}]"#,
            r#"[{"offset": -1, "length": 9}]"#,
            r#"[{"offset": 18446744073709551615, "length": 9}]"#,
            r#"{"offset": 0, "length": 9}"#,
            "[[0, 9]]",
            "",
        ] {
            let error = parse(bad.as_bytes()).expect_err(bad);
            assert_eq!(error.exit.code(), 2, "{bad}");
        }
    }
}
