//! The walk over disks and all that lies in them.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::map::{Segments, Target, WholeDisk};
use super::{Content, Disk, Mapped, PartitionInfo, TableKind, Volume, VolumeTree};
use super::{gpt, luks, lvm, mbr, md, probe};
use crate::fs::FsKind;
use crate::{Error, ErrorKind, Media};

/// How deep volumes lie in each other: disk, partition, array, logical volume, and a virtual disk with partitions in it.
const DEPTH_MAX: usize = 10;
/// How many volumes one machine has.
const VOLUMES_MAX: usize = 4096;
/// How many disks one machine has.
const DISKS_MAX: usize = 1024;
/// The cache of a volume while it is looked at.
const CACHE_BYTES: u64 = 1 << 20;
/// What all physical volumes together have of metadata: a copy on each. A group of a thousand volumes has some 500 KiB.
const LVM_TEXT_BYTES_MAX: usize = 64 << 20;

/// What to tell a user of a volume that Windows encrypted.
const BITLOCKER: &str = "It is encrypted, and its keys are not here: attach its disk with `backstay mount iscsi` or \
    `backstay mount nbd` and open it there.";

/// Finds what is on the disks of a machine.
///
/// A piece that is damaged, missing or unknown is a volume that says so, and the rest is found all the same.
///
/// # Errors
/// [`ErrorKind::Invalid`] for two disks of one name, [`ErrorKind::Limit`] for more than 1,024 disks. Nothing on the disks
/// makes it fail.
pub fn scan(disks: &[Disk]) -> Result<VolumeTree, Error> {
    if disks.len() > DISKS_MAX {
        let text = format!("{} disks are more than the {DISKS_MAX} a machine has", disks.len());
        return Err(Error::new(ErrorKind::Limit, text));
    }
    let devices: Arc<[_]> = disks.iter().map(|disk| Arc::clone(&disk.device)).collect();
    let mut scan = Scan::default();
    for (index, disk) in disks.iter().enumerate() {
        if scan.names.contains(&disk.name) {
            let text = format!("two disks are called {:?}", disk.name);
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let size = disk.device.geometry().size_bytes;
        let mapped = Mapped::new(Arc::clone(&devices), Arc::new(WholeDisk { disk: index, size }));
        scan.add(New { name: disk.name.clone(), mapped: Some(mapped), ..New::default() });
    }
    scan.run();
    scan.join_btrfs();
    Ok(VolumeTree { volumes: scan.volumes, notes: scan.notes })
}

#[derive(Debug, Default)]
struct Scan {
    volumes: Vec<Volume>,
    names: HashSet<String>,
    depths: Vec<usize>,
    queue: VecDeque<usize>,
    notes: Vec<String>,
    btrfs: Vec<BtrfsDevice>,
    arrays: md::Arrays,
    pvs: Vec<lvm::Pv>,
    groups: lvm::Groups,
    text_bytes: usize,
}

/// A volume that was found.
#[derive(Debug, Default)]
struct New {
    name: String,
    parents: Vec<usize>,
    /// Its bytes, or its size and why they cannot be had.
    mapped: Option<Mapped>,
    size: u64,
    partition: Option<PartitionInfo>,
    content: Option<Content>,
    error: Option<String>,
    notes: Vec<String>,
}

/// A device of a btrfs over several.
#[derive(Debug)]
struct BtrfsDevice {
    volume: usize,
    uuid: String,
    count: u64,
    id: u64,
}

impl Scan {
    /// Looks into everything, and into what is made of it. Arrays and groups that are complete come first: what the others miss
    /// may lie in those.
    fn run(&mut self) {
        loop {
            while let Some(index) = self.queue.pop_front() {
                if let Err(e) = self.look(index) {
                    self.volumes[index].error.get_or_insert_with(|| e.to_string());
                }
            }
            let made = self.arrays(false)
                || self.volume_groups(false)
                || self.arrays(true)
                || self.volume_groups(true);
            if !made {
                break;
            }
        }
        let known = self.groups.known();
        for (_, pv) in self.pvs.iter().enumerate().filter(|(n, _)| !known.contains(n)) {
            let volume = &mut self.volumes[pv.volume];
            match lvm::orphan(&pv.label) {
                Ok(note) => volume.notes.push(note.to_owned()),
                Err(e) => volume.error = Some(e.to_string()),
            }
        }
    }

    /// A new volume, to be looked into. A name that is taken gets a number behind it.
    fn add(&mut self, new: New) -> Option<usize> {
        if self.volumes.len() >= VOLUMES_MAX {
            let text = format!("There are more than {VOLUMES_MAX} volumes, and not all are shown.");
            if !self.notes.contains(&text) {
                self.notes.push(text);
            }
            return None;
        }
        let mut unique = new.name.clone();
        for n in 2.. {
            if self.names.insert(unique.clone()) {
                break;
            }
            unique = format!("{}~{n}", new.name);
        }
        let index = self.volumes.len();
        self.depths.push(new.parents.iter().map(|p| self.depths[*p] + 1).max().unwrap_or(0));
        let refused = || Some(new.mapped.as_ref()?.map().refused()?.to_string());
        let error = new.error.clone().or_else(refused);
        let looked = new.mapped.is_some() && new.content.is_none();
        self.volumes.push(Volume {
            name: unique,
            parents: new.parents,
            content: new.content.unwrap_or(Content::Empty),
            label: String::new(),
            uuid: None,
            size_bytes: new.mapped.as_ref().map_or(new.size, Mapped::size_bytes),
            partition: new.partition,
            notes: new.notes,
            error,
            devices: new.mapped.map(Arc::new).into_iter().collect(),
        });
        if looked {
            self.queue.push_back(index);
        }
        Some(index)
    }

    fn arrays(&mut self, all: bool) -> bool {
        let arrays = self.arrays.assemble(all);
        let made = !arrays.is_empty();
        for md::Array { name, parents, mapped, error, notes } in arrays {
            let content = mapped.is_none().then_some(Content::Other("array".into()));
            self.add(New { name, parents, mapped, error, notes, content, ..New::default() });
        }
        made
    }

    fn volume_groups(&mut self, all: bool) -> bool {
        let groups = self.groups.assemble(&self.pvs, all);
        let made = !groups.is_empty();
        for group in groups {
            for member in &group.members {
                let volume = &mut self.volumes[*member];
                volume.content = Content::LvmPv { vg: group.name.clone() };
                volume.notes.extend_from_slice(&group.notes);
            }
            for lv in group.volumes {
                let content = lv.mapped.is_none().then_some(lv.content);
                let parents =
                    if lv.parents.is_empty() { group.members.clone() } else { lv.parents };
                self.add(New {
                    name: lv.name,
                    parents,
                    mapped: lv.mapped,
                    size: lv.size,
                    content,
                    error: lv.error,
                    notes: lv.notes,
                    ..New::default()
                });
            }
        }
        made
    }

    /// Looks at the start (and the end) of a volume, and finds what is in it.
    fn look(&mut self, index: usize) -> Result<(), Error> {
        if self.depths[index] >= DEPTH_MAX {
            let text = format!("volumes lie in each other more than {DEPTH_MAX} deep");
            return Err(Error::new(ErrorKind::Limit, text));
        }
        let Some(mapped) = self.volumes[index].devices.first().cloned() else { return Ok(()) };
        let media = Media::with_cache(Arc::clone(&mapped) as Arc<_>, CACHE_BYTES)?;
        if self.member(index, &mapped, &media)? {
            return Ok(());
        }
        if let Some(found) = luks::read(&media)? {
            self.volumes[index].notes.push(luks::HINT.to_owned());
            return self.found(index, found, &media);
        }
        if let Some(found) = probe::boot_sector(&media)? {
            return self.found(index, found, &media);
        }
        // A partition may start with a boot sector that was copied from its disk, or be all of its disk (as on images for
        // sticks). Disks and logical volumes may have had a file system before they got a table.
        let partition = self.volumes[index].partition.as_ref().map(|p| p.start_bytes);
        if partition.is_none() && self.table(index, &media)? {
            return Ok(());
        }
        if let Some(found) = probe::anything(&media)? {
            return self.found(index, found, &media);
        }
        if partition.is_some_and(|start| start > 0) {
            self.table(index, &media)?;
        }
        Ok(())
    }

    /// Whether it is a part of something larger: of an array, or a physical volume.
    fn member(&mut self, index: usize, mapped: &Arc<Mapped>, media: &Media) -> Result<bool, Error> {
        let in_partition = |at: u64| {
            let table = mbr::read(media).ok().flatten();
            table.is_some_and(|table| table.parts.iter().any(|part| part.holds(at)))
        };
        match md::read(media, in_partition) {
            Ok(Some(superblock)) => {
                let volume = &mut self.volumes[index];
                volume.content = Content::MdMember;
                volume.uuid = Some(superblock.uuid.clone());
                volume.label.clone_from(&superblock.name);
                volume.notes.push(format!("Its superblock is of version {}.", superblock.version));
                self.arrays.add(index, superblock, Arc::clone(mapped));
                return Ok(true);
            }
            Ok(None) => {}
            Err(e) => {
                // What is in it may be readable all the same, and is not taken for more than it is.
                self.volumes[index].content = Content::MdMember;
                return Err(e);
            }
        }
        let label = match lvm::read(media) {
            Ok(Some(label)) => label,
            Ok(None) => return Ok(false),
            Err(e) => {
                self.volumes[index].content = Content::LvmPv { vg: String::new() };
                return Err(e);
            }
        };
        let volume = &mut self.volumes[index];
        volume.content = Content::LvmPv { vg: String::new() };
        volume.uuid = Some(label.uuid.clone());
        // Any copy that is good will do.
        volume.notes.extend_from_slice(&label.errors);
        let new: usize = label.texts.iter().map(|text| text.len()).sum();
        self.text_bytes = self.text_bytes.saturating_add(new);
        if self.text_bytes > LVM_TEXT_BYTES_MAX {
            let text = format!("the metadata of LVM are longer than {LVM_TEXT_BYTES_MAX} bytes");
            return Err(Error::new(ErrorKind::Limit, text));
        }
        self.pvs.push(lvm::Pv { volume: index, label, mapped: Arc::clone(mapped) });
        Ok(true)
    }

    fn found(&mut self, index: usize, found: probe::Found, media: &Media) -> Result<(), Error> {
        if found.content == Content::FileSystem(FsKind::Btrfs) {
            let (count, id) = probe::btrfs_device(media)?;
            let uuid = found.uuid.clone().unwrap_or_default();
            self.btrfs.push(BtrfsDevice { volume: index, uuid, count, id });
        }
        let volume = &mut self.volumes[index];
        if found.content == Content::Other("BitLocker".into()) {
            volume.notes.push(BITLOCKER.to_owned());
        }
        (volume.content, volume.label, volume.uuid) = (found.content, found.label, found.uuid);
        Ok(())
    }

    /// Finds a partition table; answers whether there is one.
    fn table(&mut self, index: usize, media: &Media) -> Result<bool, Error> {
        let record = mbr::read(media)?;
        let protective = |t: &mbr::Table| t.parts.iter().any(|p| p.kind == mbr::PROTECTIVE);
        match (gpt::read(media), record) {
            (Ok(table), Some(record)) if !protective(&record) => {
                self.volumes[index].notes.push(format!(
                    "There is a GPT ({}) too, and no mark of it in the master boot record, which is what counts.",
                    table.guid
                ));
                self.by_mbr(index, record);
            }
            (Ok(mut table), record) => {
                if record.is_none() {
                    // A file system in the place of the table, and a copy left over at the end of the disk.
                    if probe::anything(media)?.is_some() {
                        return Ok(false);
                    }
                    table.notes.push("There is no protective master boot record.".to_owned());
                }
                self.by_gpt(index, table);
            }
            (Err(gpt::Missing::Damaged(e)), Some(record)) => {
                self.volumes[index].error = Some(format!("The GPT cannot be used: {e}"));
                self.by_mbr(index, record);
            }
            (Err(gpt::Missing::Damaged(e)), None) => {
                self.volumes[index].error = Some(format!("The GPT cannot be used: {e}"));
                return Ok(false);
            }
            (Err(gpt::Missing::None), Some(record)) => {
                if protective(&record) {
                    let text = "The master boot record announces a GPT, and there is none.";
                    self.volumes[index].error = Some(text.to_owned());
                }
                self.by_mbr(index, record);
            }
            (Err(gpt::Missing::None), None) => return Ok(false),
        }
        Ok(true)
    }

    fn by_gpt(&mut self, index: usize, table: gpt::Table) {
        let volume = &mut self.volumes[index];
        volume.content = Content::Table(TableKind::Gpt);
        volume.uuid = Some(table.guid);
        volume.notes.extend(table.notes);
        for part in table.parts {
            let child = self.partition(index, part.info, part.len);
            let Some(child) = child else { return };
            self.name_by_type(child);
        }
    }

    fn by_mbr(&mut self, index: usize, table: mbr::Table) {
        self.volumes[index].content = Content::Table(TableKind::Mbr);
        for text in table.errors {
            self.volumes[index].error.get_or_insert_default().push_str(&text);
        }
        for part in table.parts {
            // What a protective entry covers is all the disk, which is a volume already.
            if part.kind == mbr::PROTECTIVE {
                continue;
            }
            let extended = part.is_extended();
            let Some(child) = self.partition(index, part.info, part.len) else { return };
            if extended {
                self.volumes[child].content = Content::Extended;
                // Its first sector is a boot record; the partitions in it are found already.
                self.queue.retain(|queued| *queued != child);
            }
            self.name_by_type(child);
        }
    }

    /// Partitions that say by their type what they are, to no magic of which we know.
    fn name_by_type(&mut self, index: usize) {
        let kind = self.volumes[index].partition.as_ref().map(|p| p.type_name.as_str());
        let name = match kind {
            Some("Storage Spaces") => "Storage Spaces",
            Some("Windows dynamic disk" | "Windows dynamic disk metadata") => "LDM",
            _ => return,
        };
        self.volumes[index].content = Content::Other(name.into());
    }

    fn partition(&mut self, index: usize, info: PartitionInfo, len: u64) -> Option<usize> {
        let (parent, start) = (&self.volumes[index], info.start_bytes);
        let mapped = Arc::clone(parent.devices.first()?);
        // As Linux names them: with a "p" after a digit.
        let p = if parent.name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        let name = format!("{}{p}{}", parent.name, info.number);
        let whole = mapped.size_bytes();
        let map = Segments::one(len, Target::Below(Arc::clone(mapped.map()), start));
        let child = self.add(New {
            name,
            parents: vec![index],
            mapped: Some(mapped.with_map(Arc::new(map))),
            partition: Some(info),
            ..New::default()
        })?;
        if start.checked_add(len).is_none_or(|end| end > whole) {
            self.volumes[child].error = Some(format!(
                "It goes from byte {start} on for {len} bytes, beyond the end of {} ({whole} bytes).",
                self.volumes[index].name
            ));
        }
        Some(child)
    }

    /// Gives the first volume of each btrfs over several devices all of them.
    fn join_btrfs(&mut self) {
        let found = std::mem::take(&mut self.btrfs);
        let mut done = HashSet::new();
        for first in &found {
            if first.count < 2 || !done.insert(first.uuid.as_str()) {
                continue;
            }
            let mut all: Vec<&BtrfsDevice> =
                found.iter().filter(|device| device.uuid == first.uuid).collect();
            all.sort_by_key(|device| (device.id, device.volume));
            all.dedup_by_key(|device| device.id);
            let devices = all.iter().flat_map(|d| self.volumes[d.volume].devices()).collect();
            let name = self.volumes[first.volume].name.clone();
            for other in found.iter().filter(|d| d.uuid == first.uuid && d.volume != first.volume) {
                let volume = &mut self.volumes[other.volume];
                volume.content = Content::Other("btrfs_member".into());
                volume.notes.push(format!("It is a device of the btrfs of {name}."));
            }
            let there = all.len() as u64;
            let volume = &mut self.volumes[first.volume];
            volume.devices = devices;
            if there < first.count {
                let text =
                    format!("Of the {} devices of this btrfs {there} are here.", first.count);
                volume.error = Some(text);
            }
        }
    }
}
