//! Finding a file in many recovery points: when their lists are made, and when they are there.

use std::fs::File;
use std::time::Instant;

use anyhow::Result;

use super::super::process::Product;
use super::{ENTRIES, Figures, forget, mount, run_tool, sparse};
use crate::proc;
use crate::workdir::Stop;

/// Recovery points that are searched.
const POINTS: u32 = 100;

/// What the figures are called.
pub(super) const MAKING: &str = "find in 100 points, their lists made";
pub(super) const SEARCHING: &str = "find in 100 points, their lists kept";

pub(super) fn many_points(
    product: &Product,
    rounds: u32,
    stop: &Stop,
    figures: &mut Figures,
) -> Result<()> {
    let image = product.work.join("guest.raw");
    sparse(&image, 1 << 30)?;
    let text = image.display().to_string();
    run_tool("mkfs.ext4", &["-q", "-N", "131072", &text])?;
    let at = product.work.join("kernel");
    {
        let mounted = mount(&image, &at, "loop")?;
        let many = mounted.0.join("many");
        std::fs::create_dir(&many)?;
        for i in 0..ENTRIES {
            File::create(many.join(format!("file number {i}")))?;
        }
    }
    product.back_up(&image)?;
    for number in 1..POINTS {
        stop.check()?;
        {
            let mounted = mount(&image, &at, "loop")?;
            std::fs::write(mounted.0.join("many/file number 77"), format!("{number}"))?;
        }
        proc::output(&mut product.command(&["backup", &text, "--machine", "bench", "-q"]))?;
    }
    let mut find = |what: &str| -> Result<()> {
        forget()?;
        let start = Instant::now();
        let args = ["find", "file number 77", "--in", "bench", "--history", "--json"];
        let said = proc::capture(&mut product.command(&args))?;
        let seconds = start.elapsed().as_secs_f64();
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let versions = said["files"][0]["versions"].as_array().map_or(0, Vec::len);
        anyhow::ensure!(versions == POINTS as usize, "{versions} versions of {POINTS} were found");
        eprintln!("{what}: {seconds:.3} s");
        figures.entry((what.into(), "backstay".into())).or_default().push(seconds);
        Ok(())
    };
    find(MAKING)?;
    for _ in 0..rounds {
        stop.check()?;
        find(SEARCHING)?;
    }
    Ok(())
}
