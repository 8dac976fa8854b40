//! A file as its records have it: all its attributes, gathered.

use std::sync::Arc;

use super::list;
use super::record::{Body, Mapped, Raw, Record, flag, kind};
use super::volume::Volume;
use crate::fields::Fields;
use crate::fs::Time;
use crate::{Error, ErrorKind};

/// Values in records that one file may have together.
const RESIDENT_MAX: usize = 2 << 20;
/// Compression units are 16 clusters of 4 KiB; larger ones than this nobody makes.
const UNIT_MAX: u64 = 1 << 20;
/// 100-nanosecond steps from 1601 to 1970.
const EPOCH: i64 = 116_444_736_000_000_000;

/// A file, directory, or anything else with a base record.
#[derive(Debug)]
pub(super) struct File {
    pub(super) number: u64,
    pub(super) sequence: u16,
    pub(super) directory: bool,
    pub(super) standard: Standard,
    pub(super) attributes: Vec<Attribute>,
}

/// Times and DOS attributes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Standard {
    pub(super) created: Time,
    pub(super) modified: Time,
    pub(super) changed: Time,
    pub(super) accessed: Time,
    pub(super) flags: u32,
}

/// One attribute of a file.
#[derive(Debug)]
pub(super) struct Attribute {
    pub(super) kind: u32,
    /// UTF-16, little-endian.
    pub(super) name: Box<[u8]>,
    pub(super) flags: u16,
    pub(super) value: Value,
}

/// Its value.
#[derive(Debug)]
pub(super) enum Value {
    /// In a record.
    Resident(Arc<[u8]>),
    /// In clusters.
    Clusters(Clusters),
}

/// A value in clusters.
#[derive(Debug)]
pub(super) struct Clusters {
    pub(super) size_bytes: u64,
    /// Behind this it reads as zeros.
    pub(super) initialized_bytes: u64,
    pub(super) allocated_bytes: u64,
    /// Clusters of a compression unit; 0 if it is not compressed.
    pub(super) unit_clusters: u64,
    /// In order, the first one from cluster 0 on.
    pub(super) pieces: Vec<Piece>,
}

/// A part of a run list, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Piece {
    pub(super) first: u64,
    pub(super) record: u64,
    pub(super) instance: u16,
}

/// A time as NTFS keeps it: steps of 100 ns since 1601.
pub(super) fn time(steps: u64) -> Time {
    let steps = steps.cast_signed().saturating_sub(EPOCH);
    let nanos = steps.rem_euclid(10_000_000) as u32 * 100;
    Time { seconds: steps.div_euclid(10_000_000), nanos }
}

impl Attribute {
    fn new(raw: &Raw<'_>, record: &Record, volume: &Volume) -> Result<Self, Error> {
        let value = match raw.body {
            Body::Resident(bytes) => Value::Resident(bytes.into()),
            Body::Mapped(mapped) => Value::Clusters(Clusters::new(raw, &mapped, record, volume)?),
        };
        Ok(Self { kind: raw.kind, name: raw.name.into(), flags: raw.flags, value })
    }

    pub(super) fn size_bytes(&self) -> u64 {
        match &self.value {
            Value::Resident(bytes) => bytes.len() as u64,
            Value::Clusters(clusters) => clusters.size_bytes,
        }
    }

    /// In units of 512 bytes, also for what is within a record.
    pub(super) fn allocated_bytes(&self) -> u64 {
        match &self.value {
            Value::Resident(bytes) => bytes.len().next_multiple_of(512) as u64,
            Value::Clusters(clusters) => clusters.allocated_bytes,
        }
    }

    /// Only content is: the mark on a directory's index says what happens to files that are made in it.
    pub(super) fn is_encrypted(&self) -> bool {
        self.kind == kind::DATA && self.flags & flag::ENCRYPTED != 0
    }

    /// A name of ASCII, as the names of the format's own attributes are.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name.iter().copied().eq(name.bytes().flat_map(|b| [b, 0]))
    }

    /// The value of an attribute that is always in its record.
    pub(super) fn resident(&self, what: &str) -> Result<&[u8], Error> {
        match &self.value {
            Value::Resident(bytes) => Ok(bytes),
            Value::Clusters(_) => Err(Error::damaged(format!("{what} is not in its record"))),
        }
    }
}

impl Clusters {
    fn new(
        raw: &Raw<'_>,
        mapped: &Mapped<'_>,
        record: &Record,
        volume: &Volume,
    ) -> Result<Self, Error> {
        let bad = |text: String| {
            Error::damaged(format!("the attribute {:#x} of {}: {text}", raw.kind, record.what()))
        };
        if mapped.first != 0 {
            return Err(bad(format!("it begins with cluster {}", mapped.first)));
        }
        if mapped.data > mapped.allocated || mapped.initialized > mapped.data {
            return Err(bad(format!(
                "{} bytes in {} allocated, {} initialized",
                mapped.data, mapped.allocated, mapped.initialized
            )));
        }
        let unit_clusters = match raw.flags & flag::COMPRESSED {
            0 => 0,
            1 if mapped.unit < 21 => 1u64 << mapped.unit,
            method => return Err(bad(format!("compression {method}, unit {}", mapped.unit))),
        };
        if unit_clusters * volume.boot.cluster_bytes > UNIT_MAX {
            return Err(bad(format!("compression units of {unit_clusters} clusters")));
        }
        let piece = Piece { first: 0, record: record.number, instance: raw.instance };
        Ok(Self {
            size_bytes: mapped.data,
            initialized_bytes: mapped.initialized,
            allocated_bytes: mapped.total.unwrap_or(mapped.allocated),
            unit_clusters,
            pieces: vec![piece],
        })
    }
}

impl File {
    /// Reads the file whose base record is `number`.
    pub(super) fn load(volume: &Volume, number: u64) -> Result<Self, Error> {
        let record = volume.record(number)?;
        if !record.is_used()? {
            return Err(Error::not_found(format!("{} is not in use", record.what())));
        }
        if record.base()? != 0 {
            let text = format!("{} continues another one", record.what());
            return Err(Error::not_found(text));
        }
        let raw = record.attributes()?;
        let list = raw.iter().find(|a| a.kind == kind::ATTRIBUTE_LIST);
        let attributes = match list {
            None => raw.iter().map(|raw| Attribute::new(raw, &record, volume)).collect(),
            Some(list) => {
                let bytes = volume.list_bytes(list, record.what())?;
                gather(volume, &record, &bytes)
            }
        }?;
        let mut file = Self {
            number,
            sequence: record.sequence()?,
            directory: record.is_directory()?,
            standard: Standard::default(),
            attributes,
        };
        file.standard = file.standard(record.what())?;
        Ok(file)
    }

    fn standard(&self, what: &str) -> Result<Standard, Error> {
        let what = format!("the standard information of {what}");
        let Some(found) = self.attribute(kind::STANDARD_INFORMATION, "") else {
            return Err(Error::damaged(format!("{what} is missing")));
        };
        let fields = Fields::new(found.resident(&what)?, &what);
        Ok(Standard {
            created: time(fields.le64(0)?),
            modified: time(fields.le64(8)?),
            changed: time(fields.le64(16)?),
            accessed: time(fields.le64(24)?),
            flags: fields.le32(32)?,
        })
    }

    /// The first attribute of this type and (ASCII) name.
    pub(super) fn attribute(&self, kind: u32, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|a| a.kind == kind && a.is_named(name))
    }

    /// Its named streams, in the order of the records.
    pub(super) fn streams(&self) -> impl Iterator<Item = &Attribute> {
        self.attributes.iter().filter(|a| a.kind == kind::DATA && !a.name.is_empty())
    }

    /// The stream of part `part` of a node: 0 for the one without a name. `None` for a file without it.
    pub(super) fn stream(&self, part: u64) -> Option<&Attribute> {
        match part.checked_sub(1) {
            None => self.attribute(kind::DATA, ""),
            Some(i) => self.streams().nth(usize::try_from(i).ok()?),
        }
    }

    /// About what it takes in memory.
    pub(super) fn weight(&self) -> u64 {
        let one = |a: &Attribute| {
            let value = match &a.value {
                Value::Resident(bytes) => bytes.len(),
                Value::Clusters(clusters) => clusters.pieces.len() * size_of::<Piece>(),
            };
            a.name.len() + value + size_of::<Attribute>()
        };
        (size_of::<Self>() + self.attributes.iter().map(one).sum::<usize>()) as u64
    }
}

/// The attributes an attribute list names: heads are read, further pieces only noted.
fn gather(volume: &Volume, base: &Record, list: &[u8]) -> Result<Vec<Attribute>, Error> {
    let mut all: Vec<Attribute> = Vec::new();
    let mut other: Option<Record> = None;
    let mut resident = 0;
    for entry in list::entries(list, base.what())? {
        let bad = |text: &str| {
            let (kind, record) = (entry.kind, entry.record);
            let text = format!("its attribute {kind:#x} in record {record} {text}");
            Error::damaged(format!("{}: {text}", base.what()))
        };
        if entry.kind == kind::ATTRIBUTE_LIST {
            continue;
        }
        if entry.first > 0 {
            let piece =
                Piece { first: entry.first, record: entry.record, instance: entry.instance };
            let head = all.last_mut().filter(|a| a.kind == entry.kind && *a.name == *entry.name);
            match head.map(|a| &mut a.value) {
                Some(Value::Clusters(c))
                    if c.pieces.last().is_some_and(|p| p.first < piece.first) =>
                {
                    c.pieces.push(piece);
                }
                _ => return Err(bad("continues nothing")),
            }
            continue;
        }
        let record = if entry.record == base.number {
            base
        } else {
            if other.as_ref().is_none_or(|o| o.number != entry.record) {
                other = Some(extension(volume, base, &entry)?);
            }
            other.as_ref().unwrap_or(base)
        };
        let found = record.attributes()?.into_iter().find(|raw| entry.is(raw));
        let Some(found) = found else { return Err(bad("is not there")) };
        let attribute = Attribute::new(&found, record, volume)?;
        if let Value::Resident(bytes) = &attribute.value {
            resident += bytes.len();
        }
        if resident > RESIDENT_MAX {
            let text = format!("{} has more than {RESIDENT_MAX} bytes in records", base.what());
            return Err(Error::new(ErrorKind::Limit, text));
        }
        all.push(attribute);
    }
    Ok(all)
}

/// A further record of the file with the record `base`.
fn extension(volume: &Volume, base: &Record, entry: &list::Entry<'_>) -> Result<Record, Error> {
    let record = volume.record(entry.record).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            Error::damaged(format!("{} leads nowhere", base.what())).with_source(e)
        }
        _ => e,
    })?;
    if !record.is_used()? || record.base()? != base.number || record.sequence()? != entry.sequence {
        let text = format!("{} does not belong to {}", record.what(), base.what());
        return Err(Error::damaged(text));
    }
    Ok(record)
}
