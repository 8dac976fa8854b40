use std::collections::HashMap;
use std::fmt::Debug;

use backstay_format::point::{CopiedFrom, RecoveryPoint};
use backstay_format::{ChunkId, PointId, RepoId};
use jiff::Timestamp;

use crate::error::{ErrorKind, Result};
use crate::key::ObjectKey;
use crate::quarantine::{lost, read_copy};
use crate::read::ImageReader;
use crate::repository::{Inner, Repository};

/// A range of a disk of a recovery point, as a source may know it too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlace {
    /// The repository that is repaired.
    pub repository: RepoId,
    /// The machine.
    pub machine: String,
    /// The recovery point.
    pub point: PointId,
    /// Where the point was first made, if it is a copy.
    pub copied_from: Option<CopiedFrom>,
    /// When it was made.
    pub time: Timestamp,
    /// The disk.
    pub disk: String,
    /// The disk's size.
    pub size_bytes: u64,
    /// Where the range starts.
    pub offset_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
}

impl DiskPlace {
    /// The repository in which the point was first made, and its id there: equal for all copies.
    pub fn first_made(&self) -> CopiedFrom {
        self.copied_from.unwrap_or(CopiedFrom { repository: self.repository, point: self.point })
    }
}

/// A chunk that no whole copy is left of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedChunk {
    /// Its id under the keys of the repository that is repaired.
    pub id: ChunkId,
    /// The level of an image-tree node; nothing for a chunk of a disk.
    pub node_level: Option<u8>,
    /// Where it stands, or for a node: all that is below it.
    pub place: DiskPlace,
}

/// Where a repair may find what the repository has lost.
///
/// Whatever a source gives is compared with the wanted id under the repository's own key before it
/// is used: a source can be wrong or hostile, and costs time at most.
pub trait ChunkSource: Send + Debug {
    /// What it is called in reports.
    fn name(&self) -> String;

    /// The bytes that may be `wanted`; nothing if it has none. An error ends the repair: for what
    /// cannot be read because it is damaged, say nothing instead.
    fn offer(&mut self, wanted: &WantedChunk) -> Result<Option<Vec<u8>>>;

    /// Fills `buf` with what the source has on the disk of `place` from `offset_bytes` on, which
    /// may be other data by now. `false`: it has nothing there. A lost tree node is built anew
    /// from this, and used only if its id is that of the lost one.
    fn read(&mut self, place: &DiskPlace, offset_bytes: u64, buf: &mut [u8]) -> Result<bool> {
        let _ = (place, offset_bytes, buf);
        Ok(false)
    }

    /// Hands over everything it has, in blocks of `block_bytes` from where disks start, the last of
    /// each may be shorter, until `take` says that nothing more is wanted. For sources where a
    /// chunk may stand elsewhere than it did.
    fn scan(&mut self, block_bytes: u32, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<()> {
        let _ = (block_bytes, take);
        Ok(())
    }

    /// The object of a recovery point, byte for byte, where the source is a copy of the repository.
    fn point_object(&mut self, id: PointId) -> Result<Option<Vec<u8>>> {
        let _ = id;
        Ok(None)
    }
}

/// Another repository: a copy of the one that is repaired, which has the same chunks under the same
/// ids; or one with other keys, which is asked for the same disk of the same machine at the same
/// time, or for the point that one of them was copied from.
#[derive(Debug)]
pub struct RepositorySource {
    repo: Repository,
    /// Whether all of its packs are known.
    known: bool,
    points: Option<Vec<RecoveryPoint>>,
    disks: HashMap<(PointId, String), Option<ImageReader>>,
}

/// Disks kept open.
const DISKS_MAX: usize = 1024;

impl RepositorySource {
    /// A source that reads from `repo`.
    pub fn new(repo: Repository) -> Self {
        Self { repo, known: false, points: None, disks: HashMap::new() }
    }

    fn disk(&mut self, place: &DiskPlace) -> Result<Option<ImageReader>> {
        let key = (place.point, place.disk.clone());
        if let Some(known) = self.disks.get(&key) {
            return Ok(known.clone());
        }
        if self.points.is_none() {
            self.points = Some(self.repo.points()?.points);
        }
        let points = self.points.iter().flatten();
        let repository = self.repo.config().id;
        let disk = points
            .filter(|p| same_point(p, repository, place))
            .filter_map(|p| p.disk(&place.disk))
            .find(|d| d.size_bytes == place.size_bytes);
        let reader = disk.and_then(|d| self.repo.image(d).ok());
        if self.disks.len() < DISKS_MAX {
            self.disks.insert(key, reader.clone());
        }
        Ok(reader)
    }
}

/// Whether a point of another repository was made of the same backup, as far as the records tell.
/// If they do not, the ids will.
fn same_point(theirs: &RecoveryPoint, repository: RepoId, place: &DiskPlace) -> bool {
    let first = theirs.copied_from.unwrap_or(CopiedFrom { repository, point: theirs.id });
    first == place.first_made() || (theirs.machine == place.machine && theirs.time == place.time)
}

impl ChunkSource for RepositorySource {
    fn name(&self) -> String {
        self.repo.location().to_string()
    }

    fn offer(&mut self, wanted: &WantedChunk) -> Result<Option<Vec<u8>>> {
        let same_keys = self.repo.config().id == wanted.place.repository;
        if same_keys && !self.known {
            self.repo.inner().synchronise()?;
            self.known = true;
        }
        if same_keys && let Some(bytes) = any_copy(self.repo.inner(), wanted.id)? {
            return Ok(Some(bytes));
        }
        if wanted.node_level.is_some() {
            return Ok(None);
        }
        let len = usize::try_from(wanted.place.len_bytes).unwrap_or(0);
        let mut bytes = vec![0u8; len];
        let place = &wanted.place;
        Ok(self.read(place, place.offset_bytes, &mut bytes)?.then_some(bytes))
    }

    fn read(&mut self, place: &DiskPlace, offset_bytes: u64, buf: &mut [u8]) -> Result<bool> {
        let Some(disk) = self.disk(place)? else { return Ok(false) };
        match disk.read_at(offset_bytes, buf) {
            Ok(()) => Ok(true),
            Err(e) if lost(&e) || e.kind() == ErrorKind::Invalid => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn point_object(&mut self, id: PointId) -> Result<Option<Vec<u8>>> {
        let max = u64::from(backstay_format::limits::POINT_PAYLOAD_MAX);
        match self.repo.inner().storage().get(ObjectKey::Point(id), max) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if lost(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// A chunk from any copy that a repository has, good or in quarantine.
pub(super) fn any_copy(repo: &Inner, id: ChunkId) -> Result<Option<Vec<u8>>> {
    for location in repo.index()?.copies(id)? {
        match read_copy(repo, id, &location) {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(e) if lost(&e) || e.is_media_error() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(repo.quarantine().rescue(repo, id)?.map(|(_, bytes)| bytes))
}
