//! Equality, as tools of others see it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::proc;

/// Bytes compared at once when two disks are read side by side.
const COMPARE_BYTES: usize = 1 << 20;
/// Smallest unit in which differences are told.
const GRAIN_BYTES: u64 = 4096;

/// `qemu-img compare` finds the disk at `address` identical to a raw file.
pub(super) fn same_disk(address: &str, format: &str, original: &Path) -> Result<()> {
    let mut command = proc::command("qemu-img");
    command.args(["compare", "-f", format, "-F", "raw", address]).arg(original);
    let said = proc::capture(&mut command)?;
    if !said.contains("Images are identical") {
        bail!("`{}` said: {said}", proc::shown(&command));
    }
    Ok(())
}

/// The two files differ: a comparison that finds everything equal proves nothing.
pub(super) fn different_files(a: &Path, b: &Path) -> Result<()> {
    let status = proc::command("cmp").arg("--silent").args([a, b]).status()?;
    match status.code() {
        Some(1) => Ok(()),
        Some(0) => bail!("both points show the same disk"),
        _ => bail!("`cmp` ended with {status}"),
    }
}

/// Every file of the manifest, read below `root`, has the sum it was made with.
pub(super) fn manifest_holds(root: &Path, manifest: &Path) -> Result<()> {
    let mut check = proc::command("sha256sum");
    check.current_dir(root).args(["--check", "--quiet", "--strict"]).arg(manifest);
    proc::output(&mut check).map(drop)
}

/// `nbdcopy` reads the export whole; its SHA-256 is the original's. Returns the sum.
pub(super) fn same_sum(address: &str, original: &Path) -> Result<String> {
    let wanted = proc::capture(proc::command("sha256sum").stdin(fs::File::open(original)?))?;
    let mut copy = proc::command("nbdcopy");
    copy.args([address, "-"]);
    let seen = proc::pipe(copy, proc::command("sha256sum"))?;
    if seen != wanted {
        bail!("nbdcopy read {}, the disk has {}", seen.trim(), wanted.trim());
    }
    Ok(seen)
}

/// `nbdinfo` shows the size, read-only, and a map; what the map calls a hole reads as zeros in the
/// original. Returns the bytes of holes.
pub(super) fn nbdinfo(address: &str, original: &Path) -> Result<u64> {
    let text = proc::capture(proc::command("nbdinfo").args(["--json", address]))?;
    let info: Value = serde_json::from_str(&text).context("nbdinfo printed no JSON")?;
    let export = &info["exports"][0];
    let size = fs::metadata(original)?.len();
    if export["export-size"].as_u64() != Some(size) {
        bail!("nbdinfo sees the size {}, the disk has {size}", export["export-size"]);
    }
    if export["is_read_only"] != Value::Bool(true) {
        bail!("nbdinfo does not see a read-only export: {export}");
    }
    let text = proc::capture(proc::command("nbdinfo").args(["--map", "--json", address]))?;
    let map: Value = serde_json::from_str(&text).context("nbdinfo printed no map")?;
    let file = fs::File::open(original)?;
    let (mut end, mut holes) = (0, 0);
    for extent in map.as_array().context("the map is no list")? {
        let number = |name: &str| extent[name].as_u64().with_context(|| format!("{extent}"));
        let (offset, length, kind) = (number("offset")?, number("length")?, number("type")?);
        if offset != end {
            bail!("the map has a gap at {end}");
        }
        end += length;
        // Bit 1 of base:allocation says that the range reads as zeros (NBD proto.md).
        if kind & 2 != 0 {
            holes += length;
            all_zero(&file, offset, length)?;
        }
    }
    if end != size {
        bail!("the map ends at {end}, the disk at {size}");
    }
    if holes == 0 {
        bail!("the map shows no hole, and the disk has many");
    }
    Ok(holes)
}

fn all_zero(file: &fs::File, offset: u64, length: u64) -> Result<()> {
    let mut buffer = vec![0; COMPARE_BYTES];
    let mut at = offset;
    while at < offset + length {
        let n = (offset + length - at).min(COMPARE_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..n], at)?;
        if buffer[..n].iter().any(|b| *b != 0) {
            bail!("the map calls {at} a hole, and the disk has data there");
        }
        at += n as u64;
    }
    Ok(())
}

/// Every place where the two disks differ lies in an extent that `diff` names. Returns the KiB that
/// really differ, in units of 4 KiB.
pub(super) fn check_diff(diff: &Value, before: &Path, after: &Path) -> Result<u64> {
    let extents = extents_of(diff)?;
    let (mut a, mut b) = (fs::File::open(before)?, fs::File::open(after)?);
    let (mut left, mut right) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    let (mut at, mut grains) = (0, 0);
    loop {
        let n = read_full(&mut a, &mut left)?;
        if read_full(&mut b, &mut right)? != n {
            bail!("the disks have different sizes");
        }
        if n == 0 {
            break;
        }
        if left[..n] == right[..n] {
            at += n as u64;
            continue;
        }
        let grain = GRAIN_BYTES as usize;
        for (i, (x, y)) in left[..n].chunks(grain).zip(right[..n].chunks(grain)).enumerate() {
            if x != y {
                grains += 1;
                let place = at + (i * grain) as u64;
                if !extents.iter().any(|(start, len)| (*start..start + len).contains(&place)) {
                    bail!("the disks differ at {place}, and `diff` does not say so");
                }
            }
        }
        at += n as u64;
    }
    if grains == 0 {
        bail!("the disks do not differ: the change did not reach the disk");
    }
    Ok(grains * GRAIN_BYTES / 1024)
}

fn extents_of(diff: &Value) -> Result<Vec<(u64, u64)>> {
    let list = diff["disks"][0]["extents"].as_array();
    let list = list.with_context(|| format!("`diff` names no extents: {diff}"))?;
    list.iter()
        .map(|extent| {
            let offset = extent["offset_bytes"].as_u64().context("an extent without an offset")?;
            let len = extent["len_bytes"].as_u64().context("an extent without a length")?;
            Ok((offset, len))
        })
        .collect()
}

fn read_full(file: &mut fs::File, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}
