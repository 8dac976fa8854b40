//! Values of attributes: where their bytes are, and reading them.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::file::{Attribute, Clusters, Piece, Value};
use super::lznt1;
use super::record::{Body, flag, kind};
use super::runs::{self, Run};
use super::volume::Volume;
use crate::fs::{FileExtent, Place, content};
use crate::{Error, ErrorKind};

/// Pieces of run lists kept decoded; one has some 1,300 runs at most in a record of 4 KiB.
const PIECES_KEPT: usize = 64;
/// Decompressed units kept; one is 64 KiB as Windows makes them.
const UNITS_KEPT: usize = 8;
/// Extents found at once for reading.
const EXTENTS_AT_ONCE: usize = 64;

/// What is kept of values: decoded run lists, and decompressed units by file, first cluster and number.
#[derive(Debug)]
pub(super) struct Kept {
    pieces: Cache<Piece, Arc<[Run]>>,
    units: Cache<(Piece, u64), Arc<[u8]>>,
}

impl Kept {
    pub(super) fn new() -> Self {
        Self { pieces: Cache::new(PIECES_KEPT), units: Cache::new(UNITS_KEPT) }
    }
}

/// A value in clusters, of one volume.
#[derive(Debug, Clone, Copy)]
struct Mapping<'a> {
    volume: &'a Volume,
    kept: &'a Kept,
    clusters: &'a Clusters,
    what: &'a str,
}

impl Mapping<'_> {
    /// The run that maps cluster `vcn`; `None` behind the last.
    fn mapped_at(&self, vcn: u64) -> Result<Option<Run>, Error> {
        let pieces = &self.clusters.pieces;
        let i = pieces.partition_point(|piece| piece.first <= vcn).saturating_sub(1);
        let Some(piece) = pieces.get(i) else { return Ok(None) };
        let runs = match self.kept.pieces.get(piece) {
            Some(runs) => runs,
            None => {
                let runs = self.load(piece, pieces.get(i + 1))?;
                self.kept.pieces.insert(*piece, Arc::clone(&runs));
                runs
            }
        };
        Ok(runs::find(&runs, vcn).copied())
    }

    fn load(&self, piece: &Piece, next: Option<&Piece>) -> Result<Arc<[Run]>, Error> {
        let record = self.volume.record(piece.record)?;
        let found = record.attributes()?.into_iter().find_map(|raw| match raw.body {
            Body::Mapped(m) if raw.instance == piece.instance && m.first == piece.first => Some(m),
            _ => None,
        });
        let Some(mapped) = found else {
            let text = format!("{} does not map cluster {}", record.what(), piece.first);
            return Err(Error::damaged(format!("{}: {text}", self.what)));
        };
        let runs = self.volume.runs_of(&mapped, record.what())?;
        let end = runs.last().map_or(piece.first, Run::end);
        if next.is_some_and(|next| next.first != end) {
            let text = format!("{} maps clusters up to {end} only", record.what());
            return Err(Error::damaged(format!("{}: {text}", self.what)));
        }
        Ok(runs.into())
    }

    /// The run at `vcn`, which must be there.
    fn run_at(&self, vcn: u64) -> Result<Run, Error> {
        self.mapped_at(vcn)?.ok_or_else(|| {
            Error::damaged(format!("{}: nothing says where its cluster {vcn} is", self.what))
        })
    }

    fn place(run: &Run, vcn: u64, cluster: u64, skip: u64) -> Place {
        match run.lcn {
            None => Place::Hole,
            Some(lcn) => {
                Place::Device { device: 0, offset_bytes: (lcn + (vcn - run.vcn)) * cluster + skip }
            }
        }
    }

    /// The extent at `at`, not cut to anything but the value's own limits.
    fn extent_at(&self, at: u64) -> Result<(u64, Place), Error> {
        if at >= self.clusters.initialized_bytes {
            return Ok((self.clusters.size_bytes, Place::Unwritten));
        }
        let cluster = self.volume.boot.cluster_bytes;
        let vcn = at / cluster;
        let (end, place) = match self.clusters.unit_clusters {
            0 => {
                let run = self.run_at(vcn)?;
                (run.end(), Self::place(&run, vcn, cluster, at % cluster))
            }
            unit => self.unit_extent(vcn, unit, at % cluster)?,
        };
        Ok((end.saturating_mul(cluster).min(self.clusters.initialized_bytes), place))
    }

    /// The same for a compressed value: whole units at a time, unless a run tells of many.
    fn unit_extent(&self, vcn: u64, unit: u64, skip: u64) -> Result<(u64, Place), Error> {
        let cluster = self.volume.boot.cluster_bytes;
        let first = vcn - vcn % unit;
        let run = self.run_at(first)?;
        let whole = first + (run.end() - first) / unit * unit;
        if whole > vcn {
            return Ok((whole, Self::place(&run, vcn, cluster, skip)));
        }
        let parts = self.unit_runs(first, unit)?;
        let stored: u64 = parts.iter().map(|run| run.clusters).sum();
        if stored == unit {
            let part = runs::find(&parts, vcn).copied().unwrap_or(run);
            return Ok((part.end(), Self::place(&part, vcn, cluster, skip)));
        }
        Ok((first + unit, if stored == 0 { Place::Hole } else { Place::Inside }))
    }

    /// What is stored of the unit at cluster `first`: runs without holes, which only its end may have.
    fn unit_runs(&self, first: u64, unit: u64) -> Result<Vec<Run>, Error> {
        let (mut parts, mut vcn, mut hole) = (Vec::new(), first, false);
        while vcn < first + unit {
            let Some(run) = self.mapped_at(vcn)? else { break };
            let end = run.end().min(first + unit);
            match run.lcn {
                None => hole = true,
                Some(_) if hole => {
                    let text = format!("its compressed unit at cluster {first} has a hole inside");
                    return Err(Error::damaged(format!("{}: {text}", self.what)));
                }
                Some(lcn) => {
                    parts.push(Run { vcn, lcn: Some(lcn + (vcn - run.vcn)), clusters: end - vcn })
                }
            }
            vcn = end;
        }
        Ok(parts)
    }

    /// The bytes of the compressed unit that holds `at`, and where it starts.
    fn unit(&self, at: u64) -> Result<(u64, Arc<[u8]>), Error> {
        let cluster = self.volume.boot.cluster_bytes;
        let unit = self.clusters.unit_clusters.max(1);
        let first = at / cluster / unit * unit;
        let Some(head) = self.clusters.pieces.first() else {
            return Err(Error::damaged(format!("{} has no run list", self.what)));
        };
        let key = (*head, first);
        if let Some(bytes) = self.kept.units.get(&key) {
            return Ok((first * cluster, bytes));
        }
        let parts = self.unit_runs(first, unit)?;
        let mut packed = Vec::new();
        for (lcn, clusters) in parts.iter().filter_map(|run| Some((run.lcn?, run.clusters))) {
            let from = packed.len();
            packed.resize(from + (clusters * cluster) as usize, 0);
            self.volume.media.read_content(lcn * cluster, &mut packed[from..], self.what)?;
        }
        let mut bytes = vec![0; (unit * cluster) as usize];
        lznt1::decompress(&packed, &mut bytes, self.what)?;
        let bytes: Arc<[u8]> = bytes.into();
        self.kept.units.insert(key, Arc::clone(&bytes));
        Ok((first * cluster, bytes))
    }
}

/// Where the bytes of a value are, as [`crate::fs::FileSystem::extents`] has it. `what` names it.
pub(super) fn extents(
    volume: &Volume,
    kept: &Kept,
    attribute: &Attribute,
    range: (u64, u64, usize),
    what: &str,
) -> Result<Vec<FileExtent>, Error> {
    if attribute.is_encrypted() {
        return Err(Error::new(ErrorKind::Encrypted, format!("{what} is encrypted (EFS)")));
    }
    let (offset, len, max) = range;
    let end = offset.saturating_add(len).min(attribute.size_bytes());
    let mut all: Vec<FileExtent> = Vec::new();
    let mut at = offset;
    while at < end && all.len() < max.max(1) {
        let (until, place) = match &attribute.value {
            Value::Resident(_) => (end, Place::Inside),
            Value::Clusters(clusters) => Mapping { volume, kept, clusters, what }.extent_at(at)?,
        };
        let len_bytes = until.min(end).saturating_sub(at);
        if len_bytes == 0 {
            return Err(Error::damaged(format!("{what}: its run list ends at byte {at}")));
        }
        all.push(FileExtent { offset_bytes: at, len_bytes, place });
        at += len_bytes;
    }
    Ok(all)
}

/// Reads a value as [`crate::fs::FileSystem::read`] has it.
pub(super) fn read(
    volume: &Volume,
    kept: &Kept,
    attribute: &Attribute,
    offset: u64,
    buf: &mut [u8],
    what: &str,
) -> Result<usize, Error> {
    let mut done = 0;
    while done < buf.len() {
        let at = offset.saturating_add(done as u64);
        let rest = &mut buf[done..];
        let range = (at, rest.len() as u64, EXTENTS_AT_ONCE);
        let extents = extents(volume, kept, attribute, range, what)?;
        if extents.is_empty() {
            break;
        }
        let media = std::slice::from_ref(&volume.media);
        done += content::fill(media, &extents, at, rest, |at, part| match &attribute.value {
            Value::Resident(bytes) => copy(bytes, at, part, what),
            Value::Clusters(clusters) => {
                inside(&Mapping { volume, kept, clusters, what }, at, part)
            }
        })?;
    }
    Ok(done)
}

/// Reads compressed units.
fn inside(mapping: &Mapping<'_>, at: u64, part: &mut [u8]) -> Result<(), Error> {
    let mut done = 0;
    while done < part.len() {
        let at = at + done as u64;
        let (start, bytes) = mapping.unit(at)?;
        let here = (bytes.len() as u64).saturating_sub(at - start) as usize;
        let len = here.min(part.len() - done);
        copy(&bytes, at - start, &mut part[done..done + len], mapping.what)?;
        done += len;
    }
    Ok(())
}

fn copy(bytes: &[u8], at: u64, part: &mut [u8], what: &str) -> Result<(), Error> {
    let from = usize::try_from(at).ok().and_then(|at| bytes.get(at..)?.get(..part.len()));
    part.copy_from_slice(from.ok_or_else(|| Error::damaged(format!("{what} is too short")))?);
    Ok(())
}

/// A whole small value, read as metadata: through the cache, holes are damage. At most `max` bytes.
pub(super) fn whole(
    volume: &Volume,
    kept: &Kept,
    attribute: &Attribute,
    max: usize,
    what: &str,
) -> Result<Vec<u8>, Error> {
    let len = usize::try_from(attribute.size_bytes()).unwrap_or(usize::MAX);
    if len > max {
        let text = format!("{what} is {len} bytes long, more than {max}");
        return Err(Error::new(ErrorKind::Limit, text));
    }
    let mut bytes = vec![0; len];
    let read = match attribute.flags & flag::COMPRESSED {
        0 => metadata(volume, kept, attribute, 0, &mut bytes, what).map(|()| len)?,
        _ => read(volume, kept, attribute, 0, &mut bytes, what)?,
    };
    bytes.truncate(read);
    Ok(bytes)
}

/// Fills `buf` from a value that is metadata.
pub(super) fn metadata(
    volume: &Volume,
    kept: &Kept,
    attribute: &Attribute,
    offset: u64,
    buf: &mut [u8],
    what: &str,
) -> Result<(), Error> {
    let mut done = 0;
    while done < buf.len() {
        let at = offset.saturating_add(done as u64);
        let range = (at, (buf.len() - done) as u64, 1);
        let found = extents(volume, kept, attribute, range, what)?;
        let Some(extent) = found.first() else {
            let text = format!("{what} ends at {} and is read at {at}", attribute.size_bytes());
            return Err(Error::damaged(text));
        };
        let part = &mut buf[done..done + extent.len_bytes as usize];
        match (extent.place, &attribute.value) {
            (Place::Device { offset_bytes, .. }, _) => {
                volume.media.read(offset_bytes, part, what)?
            }
            (Place::Inside, Value::Resident(bytes)) => copy(bytes, at, part, what)?,
            (Place::Unwritten, _) if attribute.kind == kind::DATA => part.fill(0),
            _ => return Err(Error::damaged(format!("{what} has no cluster for its byte {at}"))),
        }
        done += extent.len_bytes as usize;
    }
    Ok(())
}
