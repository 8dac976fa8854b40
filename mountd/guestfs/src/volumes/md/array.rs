//! Members put together.

use std::collections::HashSet;
use std::sync::Arc;

use super::superblock::{Role, Superblock};
use crate::volumes::Mapped;
use crate::volumes::map::{Leg, Map, Segments, Step, Stripes, Target, below, beyond};
use crate::volumes::parity::{Layout, Parity};
use crate::{Error, ErrorKind};

/// Members of one array.
const DISKS_MAX: u32 = 1920;
/// Sizes that the members of one RAID 0 have.
const ZONES_MAX: usize = 64;
/// The levels that are no number of RAID.
const LEVEL_LINEAR: i32 = -1;

/// A member that was found: its index among the volumes, and its bytes.
#[derive(Debug)]
pub(in crate::volumes) struct Member {
    pub(in crate::volumes) volume: usize,
    pub(in crate::volumes) superblock: Superblock,
    pub(in crate::volumes) mapped: Arc<Mapped>,
}

/// An array.
#[derive(Debug)]
pub(in crate::volumes) struct Array {
    pub(in crate::volumes) name: String,
    pub(in crate::volumes) parents: Vec<usize>,
    pub(in crate::volumes) mapped: Option<Mapped>,
    pub(in crate::volumes) error: Option<String>,
    pub(in crate::volumes) notes: Vec<String>,
}

/// Which arrays are known, over several rounds.
#[derive(Debug, Default)]
pub(in crate::volumes) struct Arrays {
    pub(in crate::volumes) members: Vec<Member>,
    done: HashSet<String>,
}

impl Arrays {
    /// A member that was found.
    pub(in crate::volumes) fn add(
        &mut self,
        volume: usize,
        superblock: Superblock,
        mapped: Arc<Mapped>,
    ) {
        self.members.push(Member { volume, superblock, mapped });
    }

    /// Puts together the arrays that are new. If `all` is not set those that miss members wait.
    pub(in crate::volumes) fn assemble(&mut self, all: bool) -> Vec<Array> {
        let mut out = Vec::new();
        let mut ids: Vec<String> = Vec::new();
        for member in &self.members {
            let id = &member.superblock.uuid;
            if !self.done.contains(id) && !ids.contains(id) {
                ids.push(id.clone());
            }
        }
        for id in ids {
            let mut members: Vec<&Member> =
                self.members.iter().filter(|member| member.superblock.uuid == id).collect();
            // The newest knows the array best.
            members.sort_by_key(|m| (std::cmp::Reverse(m.superblock.events), m.volume));
            let Some(newest) = members.first().map(|m| m.superblock.clone()) else { continue };
            let complete = members.len() as u64 >= u64::from(newest.disks);
            if complete || all {
                self.done.insert(id);
                out.push(array(&newest, &members));
            }
        }
        out
    }
}

fn array(newest: &Superblock, members: &[&Member]) -> Array {
    let mut notes: Vec<String> = newest.notes.iter().map(|note| (*note).to_owned()).collect();
    let built = map(newest, members, &mut notes);
    let disks = members.first().map(|member| Arc::clone(&member.mapped));
    let (mapped, error) = match (built, disks) {
        (Ok(map), Some(disks)) => {
            let refused = map.refused().map(|why| why.to_string());
            (Some(disks.with_map(map)), refused)
        }
        (Err(e), _) => (None, Some(e.to_string())),
        (Ok(_), None) => (None, None),
    };
    let mut parents: Vec<usize> = members.iter().map(|member| member.volume).collect();
    parents.sort_unstable();
    Array { name: newest.name.clone(), parents, mapped, error, notes }
}

/// Sorts members into their places, and lays the level over them.
fn map(
    newest: &Superblock,
    members: &[&Member],
    notes: &mut Vec<String>,
) -> Result<Arc<dyn Map>, Error> {
    if let Some(why) = &newest.unsupported {
        return Err(Error::unsupported(format!("the array {}: {why}", newest.name)));
    }
    if newest.disks == 0 || newest.disks > DISKS_MAX {
        let text = format!("the array {} would have {} members", newest.name, newest.disks);
        return Err(Error::damaged(text));
    }
    let mut legs: Vec<Option<Leg>> = vec![None; newest.disks as usize];
    let mut lens = vec![0; newest.disks as usize];
    for member in members {
        let sb = &member.superblock;
        let Role::Member(place) = sb.role else { continue };
        let Some(slot) = legs.get_mut(place as usize) else { continue };
        // A member that missed one update of the superblocks has missed no write.
        if sb.events.saturating_add(1) < newest.events || slot.is_some() {
            notes.push(format!(
                "A member of {} (number {place}) is not up to date, or there twice, and is passed over.",
                newest.name
            ));
            continue;
        }
        *slot = Some(Leg { map: Arc::clone(member.mapped.map()), start: sb.data_start });
        lens[place as usize] = sb.data_len.min(member.mapped.size_bytes());
    }
    let missing = legs.iter().filter(|leg| leg.is_none()).count();
    if missing > 0 {
        notes
            .push(format!("Of {} members of {} {missing} are missing.", newest.disks, newest.name));
    }
    level(newest, legs, &lens)
}

fn level(sb: &Superblock, legs: Vec<Option<Leg>>, lens: &[u64]) -> Result<Arc<dyn Map>, Error> {
    let why = format!("a member of the array {} that is needed is missing", sb.name);
    let members = legs.len() as u64;
    let times = |data: u64| {
        let rows = whole_chunks(sb.used, sb.chunk);
        rows.checked_mul(data).ok_or_else(|| Error::damaged("an array longer than any disk"))
    };
    match sb.level {
        LEVEL_LINEAR => linear(legs, lens, sb, &why),
        0 => zoned(legs, lens, sb, &why),
        1 => {
            let copies = legs.len();
            Ok(Arc::new(Stripes::new(legs, sb.used.max(1), copies, sb.used, &why)?))
        }
        4..=6 => {
            let layout = Layout::new(sb.level as u8, sb.layout)?;
            let size = times(members.saturating_sub(layout.parities()))?;
            Ok(Arc::new(Parity::new(legs, sb.chunk, layout, size, &why)?))
        }
        10 => ten(legs, sb, &why),
        other => {
            let text = format!("the array {} has level {other}, which is not read here", sb.name);
            Err(Error::unsupported(text))
        }
    }
}

/// How much of a member is used: whole chunks, where there are chunks.
fn whole_chunks(len: u64, chunk: u64) -> u64 {
    len.checked_div(chunk).map_or(len, |chunks| chunks * chunk)
}

/// RAID 10 with its copies side by side ("near"); the others are named.
fn ten(legs: Vec<Option<Leg>>, sb: &Superblock, why: &str) -> Result<Arc<dyn Map>, Error> {
    let (near, far) = (sb.layout & 0xff, sb.layout >> 8 & 0xff);
    if far != 1 || near == 0 {
        let kind = if sb.layout >> 16 & 1 == 1 { "offset" } else { "far" };
        let text = format!("the array {}: RAID 10 with layout {kind} is not read here", sb.name);
        return Err(Error::unsupported(text));
    }
    if sb.chunk == 0 {
        return Err(Error::damaged(format!("the array {} has chunks of 0 bytes", sb.name)));
    }
    let rows = sb.used / sb.chunk;
    let chunks = rows.checked_mul(legs.len() as u64).map(|all| all / u64::from(near));
    let size = chunks.and_then(|chunks| chunks.checked_mul(sb.chunk));
    let size = size.ok_or_else(|| Error::damaged("an array longer than any disk"))?;
    Ok(Arc::new(Stripes::new(legs, sb.chunk, near as usize, size, why)?))
}

/// One member after the other.
fn linear(
    legs: Vec<Option<Leg>>,
    lens: &[u64],
    sb: &Superblock,
    why: &str,
) -> Result<Arc<dyn Map>, Error> {
    let mut segments = Segments::default();
    for (leg, len) in legs.into_iter().zip(lens) {
        let Some(leg) = leg else {
            // How long it was nobody else knows, and so not where the next one starts.
            return Err(Error::damaged(format!("the array {}: {why}", sb.name)));
        };
        let len = whole_chunks(*len, sb.chunk);
        segments.push(len, Target::Below(leg.map, leg.start))?;
    }
    Ok(Arc::new(segments))
}

/// RAID 0, whose members may have several sizes: behind the end of the shortest the others go on alone ("zones" in `raid0.c`).
fn zoned(
    legs: Vec<Option<Leg>>,
    lens: &[u64],
    sb: &Superblock,
    why: &str,
) -> Result<Arc<dyn Map>, Error> {
    if sb.chunk == 0 {
        return Err(Error::damaged(format!("the array {} has chunks of 0 bytes", sb.name)));
    }
    let all: Option<Vec<Leg>> = legs.into_iter().collect();
    let Some(all) = all else {
        return Err(Error::damaged(format!("the array {}: {why}", sb.name)));
    };
    let lens: Vec<u64> = lens.iter().map(|len| len / sb.chunk * sb.chunk).collect();
    let mut ends: Vec<u64> = lens.iter().copied().filter(|len| *len > 0).collect();
    ends.sort_unstable();
    ends.dedup();
    if ends.len() > ZONES_MAX {
        let text = format!("the array {} has members of more than {ZONES_MAX} sizes", sb.name);
        return Err(Error::new(ErrorKind::Limit, text));
    }
    let mut zones = Vec::new();
    let (mut start, mut from) = (0_u64, 0_u64);
    for end in ends {
        let legs: Vec<Leg> = all
            .iter()
            .zip(&lens)
            .filter(|(_, len)| **len >= end)
            .map(|(leg, _)| leg.clone())
            .collect();
        let len = (end - from).checked_mul(legs.len() as u64);
        let next = len.and_then(|len| start.checked_add(len));
        let next = next.ok_or_else(|| Error::damaged("an array longer than any disk"))?;
        zones.push(Zone { start, end: next, from, legs });
        (start, from) = (next, end);
    }
    let original = match (zones.len(), sb.raid0_layout) {
        (0 | 1, _) | (_, Some(2)) => false,
        (_, Some(1)) => true,
        _ => {
            let text = "members of several sizes and no word of which way they are laid out";
            return Err(Error::unsupported(format!("the array {}: {text}", sb.name)));
        }
    };
    let refused = all.iter().find_map(|leg| leg.map.refused());
    Ok(Arc::new(Zones { zones, chunk: sb.chunk, size: start, original, refused }))
}

/// A part of a RAID 0 over members that all reach this far.
#[derive(Debug)]
struct Zone {
    start: u64,
    end: u64,
    /// Where it starts on each member.
    from: u64,
    legs: Vec<Leg>,
}

#[derive(Debug)]
struct Zones {
    zones: Vec<Zone>,
    chunk: u64,
    size: u64,
    /// Members take turns by the chunk of the array, and not by that of the zone: what kernels up to 3.13 did.
    original: bool,
    refused: Option<Arc<str>>,
}

impl Map for Zones {
    fn size(&self) -> u64 {
        self.size
    }

    fn step(&self, offset: u64, len: u64) -> Result<Step, Error> {
        let index = self.zones.partition_point(|zone| zone.end <= offset);
        let Some(zone) = self.zones.get(index) else {
            return Err(beyond("the array", offset, self.size));
        };
        let (inside, legs) = (offset - zone.start, zone.legs.len() as u64);
        let (chunk, skip) = (inside / self.chunk, inside % self.chunk);
        let turn = if self.original { offset / self.chunk } else { chunk };
        let Some(leg) = zone.legs.get((turn % legs) as usize) else {
            return Err(beyond("the array", offset, self.size));
        };
        let row = (chunk / legs).checked_mul(self.chunk);
        let at = row
            .and_then(|row| row.checked_add(skip)?.checked_add(zone.from)?.checked_add(leg.start));
        below(&leg.map, at, len.min(self.chunk - skip).min(zone.end - offset))
    }

    fn refused(&self) -> Option<Arc<str>> {
        self.refused.clone()
    }
}
