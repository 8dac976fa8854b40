//! From the text of a volume group to maps of its volumes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use super::meta::{Area, Kind, Lv, PvMeta, Seg, Vg, bytes};
use super::{cow, raid, thin};
use crate::volumes::Mapped;
use crate::volumes::map::{Leg, Map, Segments, Stripes, Target};
use crate::{Error, ErrorKind, Media};

/// How deep logical volumes lie in each other: a thin volume over a pool over an array over images, on another one's origin.
const DEPTH_MAX: usize = 16;
/// The cache for the metadata of a pool or a snapshot, and for those of an array.
const POOL_CACHE_BYTES: u64 = 4 << 20;
const ARRAY_CACHE_BYTES: u64 = 128 << 10;
/// What is said of one volume.
const NOTES_MAX: usize = 32;
/// Chunks that the snapshots of one group have of their own: at 4 KiB each these are 16 GiB, and 64 MiB of memory.
const SNAPSHOT_CHUNKS_MAX: usize = 4 << 20;

/// A volume that was built, or why not.
#[derive(Debug, Clone)]
pub(super) struct Built {
    pub(super) map: Result<Arc<dyn Map>, Failure>,
    /// Which of the volumes given for physical ones it lies on.
    pub(super) on: BTreeSet<usize>,
    pub(super) notes: Vec<String>,
}

/// An error that many may ask for.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) text: String,
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self { kind: e.kind(), text: e.to_string() }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::new(failure.kind, failure.text)
    }
}

/// Builds the volumes of one group.
pub(super) struct Builder<'a> {
    vg: &'a Vg,
    /// Physical volumes that are there by UUID: which volume, and its bytes.
    there: &'a HashMap<String, (usize, Arc<Mapped>)>,
    disks: &'a Mapped,
    done: HashMap<usize, Rc<Built>>,
    pools: HashMap<usize, Result<Arc<thin::Pool>, Failure>>,
    /// The way down to what is built now.
    path: Vec<usize>,
    frames: Vec<Frame>,
    /// Chunks that snapshots of this group may still have of their own.
    chunks_left: usize,
}

/// What is known of a volume while it is built.
#[derive(Default)]
struct Frame {
    on: BTreeSet<usize>,
    notes: Vec<String>,
    /// Volumes it was made of so far.
    asked: HashSet<usize>,
}

impl<'a> Builder<'a> {
    /// `disks` is any volume of the same machine.
    pub(super) fn new(
        vg: &'a Vg,
        there: &'a HashMap<String, (usize, Arc<Mapped>)>,
        disks: &'a Mapped,
    ) -> Self {
        Self {
            vg,
            there,
            disks,
            done: HashMap::new(),
            pools: HashMap::new(),
            path: Vec::new(),
            frames: Vec::new(),
            chunks_left: SNAPSHOT_CHUNKS_MAX,
        }
    }

    /// The volume with that index.
    pub(super) fn build(&mut self, index: usize) -> Rc<Built> {
        if let Some(built) = self.done.get(&index) {
            return Rc::clone(built);
        }
        let name = self.vg.lvs.get(index).map_or("?", |lv| lv.name.as_str());
        if self.path.contains(&index) || self.path.len() >= DEPTH_MAX {
            let e = Error::damaged(format!("volume {name} is made of itself, or too deep"));
            // Not kept: from another place it may be an honest one.
            let (map, on) = (Err(e.into()), BTreeSet::new());
            return Rc::new(Built { map, on, notes: Vec::new() });
        }
        self.path.push(index);
        self.frames.push(Frame::default());
        let map = self.volume(index).map_err(Failure::from);
        self.path.pop();
        let Frame { on, notes, .. } = self.frames.pop().unwrap_or_default();
        let built = Rc::new(Built { map, on, notes });
        self.done.insert(index, Rc::clone(&built));
        built
    }

    /// The map of another volume, by name.
    fn named(&mut self, name: &str) -> Result<Arc<dyn Map>, Error> {
        let Some(index) = self.vg.index.get(name).copied() else {
            let text = format!("volume group {} has no volume {name}", self.vg.name);
            return Err(Error::damaged(text));
        };
        let built = self.build(index);
        let frame = self.frames.last_mut();
        // A volume that is asked for a thousand times is told of once.
        if let Some(frame) = frame.filter(|frame| !frame.asked.contains(&index)) {
            frame.asked.insert(index);
            frame.on.extend(&built.on);
            built.notes.iter().for_each(|note| self.note(note));
        }
        Ok(built.map.clone()?)
    }

    fn note(&mut self, text: &str) {
        if let Some(Frame { notes, .. }) = self.frames.last_mut()
            && notes.len() < NOTES_MAX
            && !notes.iter().any(|note| note == text)
        {
            notes.push(text.to_owned());
        }
    }

    fn volume(&mut self, index: usize) -> Result<Arc<dyn Map>, Error> {
        let vg = self.vg;
        let Some(lv) = vg.lvs.get(index) else { return Err(Error::damaged("no such volume")) };
        if let Some((origin, merging)) = vg.stores.get(&lv.name) {
            return self.snapshot(origin, lv, *merging);
        }
        if vg.merges_into(&lv.name) {
            let text =
                format!("a snapshot is being merged into {}, which is not read here", lv.name);
            return Err(Error::unsupported(text));
        }
        self.segments(lv)
    }

    /// The volume as its segments say, whatever else is made of it.
    fn segments(&mut self, lv: &'a Lv) -> Result<Arc<dyn Map>, Error> {
        let mut segments = Segments::default();
        for seg in &lv.segments {
            let len = bytes(seg.extents, self.vg.extent_bytes)?;
            let target = self.segment(lv, seg, len)?;
            segments.push(len, target)?;
        }
        Ok(Arc::new(segments))
    }

    fn segment(&mut self, lv: &Lv, seg: &Seg, len: u64) -> Result<Target, Error> {
        let all = |map: Arc<dyn Map>| Target::Below(map, 0);
        match &seg.kind {
            Kind::Zero => Ok(Target::Zeros),
            Kind::Striped { areas, .. } if areas.len() == 1 => self.area(&areas[0]),
            Kind::Striped { stripe, areas } => self.striped(*stripe, areas, len).map(all),
            // The first leg has what was written, also while others are brought up to it.
            Kind::Mirror { areas } => match areas.first() {
                Some(area) => self.area(area),
                None => Err(Error::damaged(format!("mirror {} has no legs", lv.name))),
            },
            Kind::Raid { kind, stripe, copies, metas, images } => {
                self.raid(&lv.name, (kind, *stripe, *copies), metas, images, len).map(all)
            }
            Kind::Thin { pool, device, external, merging } => {
                if *merging {
                    // As long as the guest has not started it again both are as they were.
                    self.note(&format!("The thin snapshot {} waits to be merged.", lv.name));
                }
                self.thin(pool, *device, external.as_deref(), len).map(all)
            }
            Kind::Cache { origin, pool, mode } => {
                let mode = mode.clone().or_else(|| self.pool_mode(pool));
                self.cached(origin, mode.as_deref()).map(all)
            }
            Kind::ThinPool { .. } => Err(Error::unsupported("a thin pool is no volume itself")),
            Kind::CachePool { .. } => Err(Error::unsupported("a cache is no volume itself")),
            Kind::Snapshot { .. } => Err(Error::unsupported("a snapshot's record is no volume")),
            Kind::Other(kind) => Err(Error::unsupported(format!("LVM's {kind} is not read here"))),
        }
    }

    /// A place on a physical or logical volume.
    fn area(&mut self, area: &Area) -> Result<Target, Error> {
        let at = bytes(area.extent, self.vg.extent_bytes)?;
        let Some(pv) = self.vg.pvs.get(&area.name) else {
            return Ok(Target::Below(self.named(&area.name)?, at));
        };
        let at =
            pv.start.checked_add(at).ok_or_else(|| Error::damaged("LVM's extent is far off"))?;
        match self.there.get(&pv.id) {
            Some((volume, mapped)) => {
                if let Some(frame) = self.frames.last_mut() {
                    frame.on.insert(*volume);
                }
                if area.extent >= pv.extents {
                    let text =
                        format!("extent {} of a physical volume of {}", area.extent, pv.extents);
                    return Err(Error::damaged(text));
                }
                Ok(Target::Below(Arc::clone(mapped.map()), at))
            }
            None => Ok(Target::Refused(missing(self.vg, pv).into())),
        }
    }

    fn striped(&mut self, stripe: u64, areas: &[Area], len: u64) -> Result<Arc<dyn Map>, Error> {
        let each = len / (areas.len().max(1) as u64);
        let mut legs = Vec::with_capacity(areas.len());
        for area in areas {
            legs.push(Some(match self.area(area)? {
                Target::Below(map, start) => Leg { map, start },
                Target::Refused(why) => Leg::refused(each, &why),
                Target::Zeros => return Err(Error::damaged("a stripe of nothing")),
            }));
        }
        Ok(Arc::new(Stripes::new(legs, stripe, 1, len, "a stripe is missing")?))
    }

    fn raid(
        &mut self,
        name: &str,
        (kind, stripe, copies): (&str, u64, u64),
        metas: &[String],
        images: &[String],
        len: u64,
    ) -> Result<Arc<dyn Map>, Error> {
        let mut states = Vec::with_capacity(images.len());
        for meta in metas {
            states.push(self.state(meta)?);
        }
        // RAID 0 keeps nothing beside its images.
        states.resize(images.len(), None);
        let in_sync = raid::in_sync(&states);
        let mut legs = Vec::with_capacity(images.len());
        let mut why = format!("a member of array {name} is missing or not up to date");
        for (image, good) in images.iter().zip(in_sync) {
            let map = self.named(image)?;
            let refused = map.refused();
            if let Some(refused) = &refused {
                why = refused.to_string();
            }
            let leg = (good && refused.is_none()).then(|| Leg { map, start: 0 });
            if leg.is_none() {
                self.note(&format!("The array {name} is read without its member {image}."));
            }
            legs.push(leg);
        }
        raid::map(kind, legs, stripe, copies, len, &why)
    }

    /// What a member says; `None` if its place is missing.
    fn state(&mut self, meta: &str) -> Result<Option<raid::State>, Error> {
        let map = self.named(meta)?;
        if map.refused().is_some() {
            return Ok(None);
        }
        let media = Media::with_cache(Arc::new(self.disks.with_map(map)), ARRAY_CACHE_BYTES)?;
        raid::state(&media)
    }

    fn thin(
        &mut self,
        pool: &str,
        device: u64,
        external: Option<&str>,
        len: u64,
    ) -> Result<Arc<dyn Map>, Error> {
        let pool = self.pool(pool)?;
        let external = external.map(|name| self.named(name)).transpose()?;
        Ok(Arc::new(thin::Thin::new(pool, device, len, external)?))
    }

    fn pool(&mut self, name: &str) -> Result<Arc<thin::Pool>, Error> {
        let vg = self.vg;
        let found = vg.index.get(name).and_then(|index| Some((*index, vg.lvs.get(*index)?)));
        let segment = found.and_then(|(index, lv)| Some((index, lv.segments.first()?)));
        let Some((index, Seg { kind: Kind::ThinPool { meta, data, transaction }, .. })) = segment
        else {
            return Err(Error::damaged(format!("{name} is no thin pool")));
        };
        // Built for every volume in it anew as far as notes and physical volumes go, opened once.
        let (meta, data) = (self.named(meta)?, self.named(data)?);
        if !self.pools.contains_key(&index) {
            let media = Media::with_cache(Arc::new(self.disks.with_map(meta)), POOL_CACHE_BYTES)?;
            let pool = thin::Pool::open(media, data).map(Arc::new).map_err(Failure::from);
            self.pools.insert(index, pool);
        }
        let pool = match &self.pools[&index] {
            Ok(pool) => Arc::clone(pool),
            Err(failure) => return Err(failure.clone().into()),
        };
        if pool.needs_check {
            self.note(&format!("The thin pool {name} is marked to be checked by its guest."));
        }
        if pool.transaction != *transaction {
            self.note(&format!(
                "The thin pool {name} is at transaction {}, and LVM's metadata at {transaction}.",
                pool.transaction
            ));
        }
        Ok(pool)
    }

    fn pool_mode(&self, pool: &str) -> Option<String> {
        let lv = self.vg.lvs.get(*self.vg.index.get(pool)?)?;
        match &lv.segments.first()?.kind {
            Kind::CachePool { mode } => mode.clone(),
            _ => None,
        }
    }

    /// A cached volume: its origin has everything if nothing waits in the cache.
    fn cached(&mut self, origin: &str, mode: Option<&str>) -> Result<Arc<dyn Map>, Error> {
        match mode {
            Some("writethrough" | "passthrough") => self.named(origin),
            mode => {
                let mode = mode.unwrap_or("unknown");
                let text = format!("a cache of mode {mode} may hold what its origin has not yet");
                Err(Error::unsupported(format!("{text}, which is not read here")))
            }
        }
    }

    fn snapshot(&mut self, origin: &str, lv: &'a Lv, merging: bool) -> Result<Arc<dyn Map>, Error> {
        if merging {
            let text = format!("snapshot {} is being merged, which is not read here", lv.name);
            return Err(Error::unsupported(text));
        }
        let origin = self.named(origin)?;
        let store = self.segments(lv)?;
        let mapped = Arc::new(self.disks.with_map(Arc::clone(&store)));
        let media = Media::with_cache(mapped, ARRAY_CACHE_BYTES)?;
        let snapshot = cow::Snapshot::open(origin, store, &media, self.chunks_left)?;
        self.chunks_left -= snapshot.chunks().min(self.chunks_left);
        Ok(Arc::new(snapshot))
    }
}

fn missing(vg: &Vg, pv: &PvMeta) -> String {
    format!(
        "the physical volume {} of volume group {} is missing (it was {} in the guest)",
        pv.id, vg.name, pv.hint
    )
}
