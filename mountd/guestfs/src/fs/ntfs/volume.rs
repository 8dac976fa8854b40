//! The volume below the files: records of the MFT, and metadata in clusters.

use super::REFERENCE_MASK;
use super::boot::Boot;
use super::list;
use super::record::{Body, Mapped, Raw, Record, kind};
use super::runs::{self, Run};
use crate::{Error, ErrorKind, Media};

/// An MFT in more pieces than this is nobody's.
const MFT_RUNS_MAX: usize = 1 << 17;

/// The volume: its units, its device, and where its MFT is.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) media: Media,
    pub(super) boot: Boot,
    mft: Vec<Run>,
    /// Records the MFT has.
    pub(super) records: u64,
    /// The MFT's first record came from its copy.
    pub(super) from_mirror: bool,
}

impl Volume {
    /// Finds the MFT by its own first record.
    pub(super) fn open(media: Media, boot: Boot) -> Result<Self, Error> {
        let mut volume = Self { media, boot, mft: Vec::new(), records: 0, from_mirror: false };
        let first = match volume.record_at(0, boot.mft_at) {
            Ok(record) => record,
            Err(e) => match volume.record_at(0, boot.mirror_at) {
                Ok(record) => {
                    volume.from_mirror = true;
                    record
                }
                Err(_) => return Err(e),
            },
        };
        volume.map_mft(&first)?;
        Ok(volume)
    }

    fn map_mft(&mut self, first: &Record) -> Result<(), Error> {
        let attributes = first.attributes()?;
        let data = attributes.iter().find_map(|a| match a.body {
            Body::Mapped(mapped) if a.kind == kind::DATA && a.name.is_empty() => Some(mapped),
            _ => None,
        });
        let Some(data) = data.filter(|data| data.first == 0) else {
            return Err(Error::damaged(format!("{} does not say where the MFT is", first.what())));
        };
        self.mft = self.runs_of(&data, first.what())?;
        self.records = data.data / self.boot.record_bytes;
        if let Some(found) = attributes.iter().find(|a| a.kind == kind::ATTRIBUTE_LIST) {
            let bytes = self.list_bytes(found, first.what())?;
            self.map_rest(&bytes, first.what())?;
        }
        let mapped = self.mft.last().map_or(0, Run::end);
        if mapped.saturating_mul(self.boot.cluster_bytes) < data.data {
            let text = format!("{mapped} clusters mapped for {} bytes", data.data);
            return Err(Error::damaged(format!("{}: {text}", first.what())));
        }
        Ok(())
    }

    /// Further records that map the MFT, each found by what is mapped before it.
    fn map_rest(&mut self, list: &[u8], what: &str) -> Result<(), Error> {
        for entry in list::entries(list, what)? {
            if entry.kind != kind::DATA || !entry.name.is_empty() || entry.first == 0 {
                continue;
            }
            let record = self.record(entry.record)?;
            let piece = record.attributes()?.into_iter().find_map(|a| match a.body {
                Body::Mapped(m) if entry.is(&a) && m.first == entry.first => Some(m),
                _ => None,
            });
            let next = self.mft.last().map_or(0, Run::end);
            let Some(piece) = piece.filter(|piece| piece.first == next) else {
                let text = format!("{} does not map the MFT from cluster {next} on", record.what());
                return Err(Error::damaged(text));
            };
            let more = self.runs_of(&piece, record.what())?;
            self.mft.extend(more);
            if self.mft.len() > MFT_RUNS_MAX {
                let text = format!("the MFT is in more than {MFT_RUNS_MAX} pieces");
                return Err(Error::new(ErrorKind::Limit, text));
            }
        }
        Ok(())
    }

    /// Decodes the run list of a piece of an attribute.
    pub(super) fn runs_of(&self, mapped: &Mapped<'_>, what: &str) -> Result<Vec<Run>, Error> {
        runs::decode(mapped.pairs, mapped.first, mapped.last, self.boot.clusters, what)
    }

    /// The bytes of an attribute list, in its record or in clusters that this record maps alone.
    pub(super) fn list_bytes(&self, found: &Raw<'_>, what: &str) -> Result<Vec<u8>, Error> {
        let mapped = match found.body {
            Body::Resident(bytes) => return Ok(bytes.to_vec()),
            Body::Mapped(mapped) => mapped,
        };
        let len = usize::try_from(mapped.data).unwrap_or(usize::MAX);
        if mapped.first != 0 || len > list::BYTES_MAX || mapped.initialized < mapped.data {
            let text = format!("the attribute list of {what} would be {len} bytes long");
            return Err(Error::damaged(text));
        }
        let mut bytes = vec![0; len];
        let runs = self.runs_of(&mapped, what)?;
        self.read_runs(&runs, 0, &mut bytes, "an attribute list")?;
        Ok(bytes)
    }

    /// Fills `buf` with metadata that these runs map, through the cache. A hole there is damage.
    pub(super) fn read_runs(
        &self,
        runs: &[Run],
        offset: u64,
        buf: &mut [u8],
        what: &str,
    ) -> Result<(), Error> {
        let cluster = self.boot.cluster_bytes;
        let mut done = 0;
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            let run = runs::find(runs, at / cluster);
            let Some((run, lcn)) = run.and_then(|run| Some((run, run.lcn?))) else {
                let text = format!("no cluster is mapped for byte {at} of it");
                return Err(Error::damaged(format!("{what}: {text}")));
            };
            let skip = at - run.vcn * cluster;
            let here = run.clusters * cluster - skip;
            let len = usize::try_from(here).map_or(buf.len() - done, |l| l.min(buf.len() - done));
            self.media.read(lcn * cluster + skip, &mut buf[done..done + len], what)?;
            done += len;
        }
        Ok(())
    }

    /// A record of the MFT, in use or not.
    pub(super) fn record(&self, number: u64) -> Result<Record, Error> {
        if number & !REFERENCE_MASK != 0 || number >= self.records {
            let text = format!("MFT record {number}, and there are {}", self.records);
            return Err(Error::not_found(text));
        }
        let offset = number * self.boot.record_bytes;
        let cluster = self.boot.cluster_bytes;
        let run = runs::find(&self.mft, offset / cluster);
        let Some((run, lcn)) = run.and_then(|run| Some((run, run.lcn?))) else {
            let text = format!("MFT record {number} has no place on the volume");
            return Err(Error::damaged(text));
        };
        let at = lcn * cluster + (offset - run.vcn * cluster);
        if offset + self.boot.record_bytes <= run.end() * cluster {
            return self.record_at(number, at);
        }
        // Clusters smaller than records: one may lie in two runs.
        let mut bytes = vec![0; self.boot.record_bytes as usize];
        self.read_runs(&self.mft, offset, &mut bytes, "an MFT record")?;
        Record::parse(number, at, bytes)
    }

    fn record_at(&self, number: u64, at: u64) -> Result<Record, Error> {
        let bytes = self.media.bytes(at, self.boot.record_bytes as usize, "an MFT record")?;
        Record::parse(number, at, bytes)
    }
}
