//! `cargo xtask demo`: the whole product once through, on a real guest disk, checked with tools
//! that know nothing of it.

mod guard;
mod guest;
mod proof;
mod run;

use std::process::ExitCode;

use anyhow::Result;

use crate::bootstrap::{self, Purpose};
use crate::cargo::Cargo;
use crate::env::House;
use crate::steps::{Outcome, Steps};
use crate::workdir::Stop;

use run::Demo;

#[derive(clap::Args, Debug, Default)]
pub(crate) struct Args {
    /// Directory for what the demo makes and removes again [default: in the build cache]
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
    /// Only make the guest's disk, and say where it is
    #[arg(long)]
    disk_only: bool,
}

/// The chore `cargo xtask demo`.
pub(crate) fn run(house: &House, args: &Args) -> Result<ExitCode> {
    if args.disk_only {
        bootstrap::packages(Purpose::Run)?;
        println!("{}", guest::ready(house)?.image.display());
        return Ok(ExitCode::SUCCESS);
    }
    let cargo = bootstrap::ready(house, Purpose::Run)?;
    Ok(steps(house, &cargo, args).finish())
}

type Step = fn(&mut Demo) -> Result<Outcome>;

/// What happens, in order. Each step needs those before it.
const STEPS: &[(&str, Step)] = &[
    ("demo: make a repository", Demo::init),
    ("demo: back up the guest's disk", Demo::first_backup),
    ("demo: change files in the guest", Demo::change),
    ("demo: back up again", Demo::second_backup),
    ("demo: list and compare the points", Demo::list),
    ("demo: open both points as files (FUSE)", Demo::open_files),
    ("demo: files equal the disks (qemu-img)", Demo::compare_files),
    ("demo: read the older guest's files (kernel mount)", Demo::read_guest_files),
    ("demo: end the mount", Demo::close_files),
    ("demo: serve both points (NBD)", Demo::serve),
    ("demo: exports as others see them (nbdinfo)", Demo::inspect_exports),
    ("demo: exports equal the disks (qemu-img)", Demo::compare_exports),
    ("demo: exports read whole (nbdcopy, sha256sum)", Demo::checksum_exports),
    ("demo: end the exports", Demo::stop_serving),
    ("demo: restore to raw and qcow2", Demo::restore),
    ("demo: restored disks equal the originals", Demo::compare_restored),
    ("demo: check the repository", Demo::check_repository),
];

/// Runs the demo. Whatever happens, nothing it made is left when this returns.
pub(crate) fn steps(house: &House, cargo: &Cargo, args: &Args) -> Steps {
    let mut steps = Steps::default();
    let mut binary = None;
    let built = steps.run("demo: build (release)", || {
        binary = Some(cargo.release_binary("backstay", "backstay")?);
        Ok(Outcome::Pass(String::new()))
    });
    let mut disk = None;
    let made = built
        && steps.run("demo: a guest disk from Debian packages", || {
            let guest = guest::ready(house)?;
            let note = format!("GPT, ext4, kernel, {} files", guest.files);
            disk = Some(guest);
            Ok(Outcome::Pass(note))
        });
    let (true, Some(binary), Some(disk)) = (made, binary, disk) else { return steps };
    let parent = args.dir.clone().unwrap_or_else(|| house.cache.join("demo"));
    let mut demo = None;
    steps.run("demo: a place to work", || {
        // Caught before anything is made that would have to be taken away.
        demo = Some((Stop::catch()?, Demo::new(&parent, binary, disk)?));
        Ok(Outcome::Pass(parent.display().to_string()))
    });
    let Some((stop, mut demo)) = demo else { return steps };
    for (name, step) in STEPS {
        let fine = steps.run(name, || {
            stop.check()?;
            step(&mut demo)
        });
        if !fine {
            break;
        }
    }
    steps.run("demo: nothing is left behind", || demo.clean());
    steps
}
