//! Lists of what recovery points hold: kept ones, and new ones.

use backstay_core::file_name::FileName;
use backstay_core::files::catalogue::{Catalogue, Part};
use backstay_core::files::walk::Limits;
use backstay_core::files::{Tree, shown};
use backstay_daemon::{FoundTree, PointFiles};
use backstay_store::{PointList, RecoveryPoint, Repository};

use crate::browse;
use crate::exit::CliError;
use crate::progress::Reporter;
use crate::signals::Signals;

/// What the names of kept lists begin with.
const PREFIX: &str = "files-";

/// Why there is no list.
pub(super) enum Failed {
    Core(backstay_core::Error),
    Cli(CliError),
}

impl From<backstay_core::Error> for Failed {
    fn from(error: backstay_core::Error) -> Self {
        Self::Core(error)
    }
}

impl From<CliError> for Failed {
    fn from(error: CliError) -> Self {
        Self::Cli(error)
    }
}

impl Failed {
    /// As the user sees it.
    pub(super) fn of(self, name: &FileName, signals: &Signals) -> CliError {
        match self {
            Self::Core(error) => crate::cmd::stopped(error, signals).what(name.to_string()),
            Self::Cli(error) => error.what(name.to_string()),
        }
    }
}

fn name_of(point: &RecoveryPoint) -> String {
    format!("{PREFIX}{}", point.id)
}

/// Removes lists of points that are no more.
pub(super) fn forget(repository: &Repository, list: &PointList) {
    // A point that cannot be read now may be read later.
    let kept: std::collections::HashSet<String> = list
        .points
        .iter()
        .map(name_of)
        .chain(list.damaged.iter().map(|(id, _)| format!("{PREFIX}{id}")))
        .collect();
    repository.forget_derived(PREFIX, &|name| kept.contains(name));
}

/// All that is on a point's disks. A list that is made is kept.
pub(super) fn whole(
    repository: &Repository,
    point: &RecoveryPoint,
    reporter: &Reporter,
) -> Result<Catalogue, Failed> {
    let name = name_of(point);
    if let Some(kept) = repository.derived(&name).and_then(|bytes| Catalogue::decode(&bytes)) {
        return Ok(kept);
    }
    let files = PointFiles::open(repository, point, browse::reader()?).map_err(CliError::from)?;
    let volumes = files.volumes().map_err(CliError::from)?;
    let named = |volume: usize| volumes.volumes.get(volume).map(|v| v.name.clone());
    let (trees, failed) = files.trees().map_err(CliError::from)?;
    let mut parts = Vec::new();
    for (volume, found) in &trees {
        parts.push(part(volume.and_then(named), found, reporter)?);
    }
    if let Some(first) = parts.first_mut() {
        for (volume, error) in failed {
            first.problem(named(volume).unwrap_or_default(), error.to_string());
        }
    }
    let catalogue = Catalogue::new(parts);
    // A list that cannot be kept is made again.
    let kept = catalogue.encode().map(|bytes| repository.keep_derived(&name, bytes));
    if let Ok(Err(error)) = kept {
        tracing::debug!(%error, "the list of files cannot be kept");
    }
    Ok(catalogue)
}

/// What is below one path, or on one volume; with `history` nothing where that is not there.
pub(super) fn below(
    repository: &Repository,
    point: &RecoveryPoint,
    (volume, path): (Option<&str>, &[u8]),
    history: bool,
    reporter: &Reporter,
) -> Result<Catalogue, Failed> {
    let files = PointFiles::open(repository, point, browse::reader()?).map_err(CliError::from)?;
    match files.tree(volume, path, true) {
        Ok(found) => Ok(Catalogue::new(vec![part(volume.map(Into::into), &found, reporter)?])),
        // In some points of many it is not there.
        Err(e) if history && e.kind() == backstay_guestfs::ErrorKind::NotFound => {
            Ok(Catalogue::new(Vec::new()))
        }
        Err(e) => Err(CliError::from(e).into()),
    }
}

fn part(volume: Option<String>, found: &FoundTree, reporter: &Reporter) -> Result<Part, Failed> {
    let tree = Tree { fs: &*found.fs, node: found.node };
    let mut part = Part::of(volume, &found.path, tree, Limits::default(), reporter)?;
    for left in found.fs.left_out(&found.path) {
        part.problem(shown(left.path.as_bytes()), left.why.clone());
    }
    Ok(part)
}
