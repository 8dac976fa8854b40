//! A volume group as its metadata tell it.

use std::collections::{HashMap, HashSet};

use super::text::{Section, Value, parse};
use crate::{Error, ErrorKind};

const SECTOR_BYTES: u64 = 512;
/// Areas of one segment: stripes and legs. LVM makes 128 stripes and 64 legs at most.
const AREAS_MAX: usize = 1024;

/// A volume group.
#[derive(Debug, Clone)]
pub(super) struct Vg {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) seqno: u64,
    pub(super) extent_bytes: u64,
    pub(super) exported: bool,
    /// By their names in the text.
    pub(super) pvs: HashMap<String, PvMeta>,
    pub(super) lvs: Vec<Lv>,
    /// Indices into `lvs` by name.
    pub(super) index: HashMap<String, usize>,
    /// Snapshots of the old kind: by the name of the store, of what it is one, and whether it is being merged.
    pub(super) stores: HashMap<String, (String, bool)>,
}

impl Vg {
    /// Whether a snapshot is being merged into a volume.
    pub(super) fn merges_into(&self, name: &str) -> bool {
        self.stores.values().any(|(origin, merging)| *merging && origin == name)
    }
}

/// A physical volume, as its group knows it.
#[derive(Debug, Clone)]
pub(super) struct PvMeta {
    pub(super) id: String,
    /// Where it was when the group was last changed.
    pub(super) hint: String,
    /// Where its first extent is, in bytes.
    pub(super) start: u64,
    pub(super) extents: u64,
}

/// A logical volume.
#[derive(Debug, Clone)]
pub(super) struct Lv {
    pub(super) name: String,
    pub(super) visible: bool,
    pub(super) segments: Vec<Seg>,
}

/// Some extents of a logical volume.
#[derive(Debug, Clone)]
pub(super) struct Seg {
    pub(super) extents: u64,
    pub(super) kind: Kind,
}

/// Something an extent lies on: a physical or a logical volume by name, and its extent there.
#[derive(Debug, Clone)]
pub(super) struct Area {
    pub(super) name: String,
    pub(super) extent: u64,
}

/// What a segment is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Striped { stripe: u64, areas: Vec<Area> },
    Mirror { areas: Vec<Area> },
    Raid { kind: String, stripe: u64, copies: u64, metas: Vec<String>, images: Vec<String> },
    Zero,
    Snapshot { origin: String, cow: String, merging: bool },
    ThinPool { meta: String, data: String, transaction: u64 },
    Thin { pool: String, device: u64, external: Option<String>, merging: bool },
    Cache { origin: String, pool: String, mode: Option<String> },
    CachePool { mode: Option<String> },
    Other(String),
}

/// Reads the text of a metadata area.
pub(super) fn read(text: &str) -> Result<Vg, Error> {
    let all = parse(text)?;
    let found = all.entries.iter().find_map(|(name, node)| match node {
        super::text::Node::Section(section) => Some((*name, section)),
        super::text::Node::Value(_) => None,
    });
    let Some((name, vg)) = found else {
        return Err(Error::damaged("LVM's metadata has no volume group"));
    };
    let extent_bytes = bytes(number(vg, "extent_size", name)?, SECTOR_BYTES)?;
    if extent_bytes == 0 {
        return Err(Error::damaged(format!("volume group {name} has extents of 0 bytes")));
    }
    let mut out = Vg {
        name: name.to_owned(),
        id: vg.text("id").unwrap_or_default().to_owned(),
        seqno: number(vg, "seqno", name)?,
        extent_bytes,
        exported: vg.has("status", "EXPORTED"),
        pvs: HashMap::new(),
        lvs: Vec::new(),
        index: HashMap::new(),
        stores: HashMap::new(),
    };
    for (pv, section) in sections(vg, "physical_volumes") {
        let meta = PvMeta {
            id: section.text("id").unwrap_or_default().to_owned(),
            hint: section.text("device").unwrap_or("no device").to_owned(),
            start: bytes(number(section, "pe_start", pv)?, SECTOR_BYTES)?,
            extents: number(section, "pe_count", pv)?,
        };
        out.pvs.insert(pv.to_owned(), meta);
    }
    let mut names = HashSet::new();
    for (lv, section) in sections(vg, "logical_volumes") {
        if !names.insert(lv) {
            return Err(Error::damaged(format!("volume group {name} has two volumes {lv}")));
        }
        out.index.insert(lv.to_owned(), out.lvs.len());
        let lv = volume(lv, section)?;
        for segment in &lv.segments {
            if let Kind::Snapshot { origin, cow, merging } = &segment.kind {
                out.stores.insert(cow.clone(), (origin.clone(), *merging));
            }
        }
        out.lvs.push(lv);
    }
    Ok(out)
}

fn sections<'a>(vg: &'a Section<'a>, name: &str) -> Vec<(&'a str, &'a Section<'a>)> {
    let entries = vg.section(name).map(|section| section.entries.as_slice()).unwrap_or_default();
    let found = entries.iter().filter_map(|(name, node)| match node {
        super::text::Node::Section(section) => Some((*name, section)),
        super::text::Node::Value(_) => None,
    });
    found.collect()
}

fn volume(name: &str, section: &Section<'_>) -> Result<Lv, Error> {
    let count = number(section, "segment_count", name)?;
    let mut list: Vec<(u64, u64, Kind)> = Vec::new();
    for (key, segment) in &section.entries {
        let super::text::Node::Section(segment) = segment else { continue };
        if !key.starts_with("segment") {
            continue;
        }
        let start = number(segment, "start_extent", name)?;
        let extents = number(segment, "extent_count", name)?;
        list.push((start, extents, kind(name, segment)?));
    }
    if list.len() as u64 != count {
        let text = format!("volume {name} has {} segments, and should have {count}", list.len());
        return Err(Error::damaged(text));
    }
    list.sort_by_key(|(start, ..)| *start);
    let mut end = 0_u64;
    let mut segments = Vec::with_capacity(list.len());
    for (start, extents, kind) in list {
        if start != end {
            let text = format!("volume {name} has a segment at extent {start}, and {end} is next");
            return Err(Error::damaged(text));
        }
        end = bytes(1, extents)?.checked_add(end).ok_or_else(|| too_long(name))?;
        segments.push(Seg { extents, kind });
    }
    Ok(Lv { name: name.to_owned(), visible: section.has("status", "VISIBLE"), segments })
}

fn kind(name: &str, segment: &Section<'_>) -> Result<Kind, Error> {
    // A type may have a flag behind it: "striped+COMPATIBLE_FLAG".
    let full = segment.text("type").unwrap_or("unknown");
    let (kind, flags) = full.split_once('+').unwrap_or((full, ""));
    let sectors = |key: &str| bytes(segment.number(key).unwrap_or(0), SECTOR_BYTES);
    let text = |key: &str| segment.text(key).map(str::to_owned);
    let needed = |key: &str| {
        text(key).ok_or_else(|| Error::damaged(format!("volume {name} ({kind}) has no {key}")))
    };
    Ok(match kind {
        "striped" | "linear" => {
            Kind::Striped { stripe: sectors("stripe_size")?, areas: areas(segment, "stripes")? }
        }
        "zero" => Kind::Zero,
        "mirror" => Kind::Mirror { areas: areas(segment, "mirrors")? },
        "snapshot" => Kind::Snapshot {
            origin: needed("origin")?,
            cow: text("cow_store").or_else(|| text("merging_store")).unwrap_or_default(),
            merging: segment.get("merging_store").is_some(),
        },
        "thin-pool" => Kind::ThinPool {
            meta: needed("metadata")?,
            data: needed("pool")?,
            transaction: segment.number("transaction_id").unwrap_or(0),
        },
        "thin" => Kind::Thin {
            pool: needed("thin_pool")?,
            device: number(segment, "device_id", name)?,
            external: text("external_origin"),
            merging: segment.get("merge").is_some(),
        },
        "cache" => Kind::Cache {
            origin: needed("origin")?,
            pool: needed("cache_pool")?,
            mode: text("cache_mode"),
        },
        "cache-pool" => Kind::CachePool { mode: text("cache_mode") },
        raid if raid.starts_with("raid") && flags.is_empty() => {
            if segment.get("reshape_count").is_some() || segment.get("data_offset").is_some() {
                return Ok(Kind::Other(format!("{raid} in the middle of a reshape")));
            }
            let (metas, images) = raid_areas(segment)?;
            let copies = segment.number("data_copies").unwrap_or(2);
            Kind::Raid {
                kind: raid.to_owned(),
                stripe: sectors("stripe_size")?,
                copies,
                metas,
                images,
            }
        }
        _ => Kind::Other(full.to_owned()),
    })
}

/// Pairs of a name and an extent.
fn areas(segment: &Section<'_>, key: &str) -> Result<Vec<Area>, Error> {
    let list = segment.list(key);
    if !list.len().is_multiple_of(2) || list.len() > 2 * AREAS_MAX {
        return Err(Error::damaged(format!("a list of {key} has {} values", list.len())));
    }
    let pairs = list.chunks_exact(2).map(|pair| match pair {
        [Value::Text(name), Value::Number(extent)] => {
            let extent = u64::try_from(*extent).ok()?;
            Some(Area { name: name.clone().into_owned(), extent })
        }
        _ => None,
    });
    let all: Option<Vec<_>> = pairs.collect();
    all.ok_or_else(|| Error::damaged(format!("{key} are no pairs of a name and an extent")))
}

/// The volumes of an array: pairs of metadata and image, or images alone for RAID 0.
fn raid_areas(segment: &Section<'_>) -> Result<(Vec<String>, Vec<String>), Error> {
    let names = |key: &str| -> Vec<String> {
        let texts = segment.list(key).iter().filter_map(|value| match value {
            Value::Text(text) => Some(text.clone().into_owned()),
            _ => None,
        });
        texts.take(2 * AREAS_MAX).collect()
    };
    let alone = names("raid0_lvs");
    if !alone.is_empty() {
        return Ok((Vec::new(), alone));
    }
    let pairs = names("raids");
    if pairs.is_empty() || !pairs.len().is_multiple_of(2) {
        return Err(Error::damaged(format!("an array has {} volumes", pairs.len())));
    }
    let metas = pairs.iter().step_by(2).cloned().collect();
    Ok((metas, pairs.iter().skip(1).step_by(2).cloned().collect()))
}

fn number(section: &Section<'_>, key: &str, of: &str) -> Result<u64, Error> {
    section
        .number(key)
        .ok_or_else(|| Error::damaged(format!("LVM's metadata of {of} has no {key}")))
}

/// A product that no disk reaches is damage.
pub(super) fn bytes(count: u64, each: u64) -> Result<u64, Error> {
    count.checked_mul(each).filter(|bytes| *bytes <= i64::MAX as u64).ok_or_else(|| {
        Error::new(
            ErrorKind::Damaged,
            format!("LVM's metadata speak of {count} times {each} bytes"),
        )
    })
}

fn too_long(name: &str) -> Error {
    Error::damaged(format!("volume {name} is longer than any disk"))
}
