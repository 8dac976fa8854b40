//! What `files` of one point shows: its volumes, the systems' trees, and a text about what cannot be shown.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use backstay_guestfs::Error;
use backstay_guestfs::apart::GuestFs;
use backstay_guestfs::fs::{FileSystem as _, NodeId};
use backstay_guestfs::volumes::{Content, Volume, VolumeTree};

use super::super::names;
use crate::PointFiles;

/// The tree of a system: volumes where the guest mounts them.
const MOUNTED: &str = "mounted";

/// The volumes of a point, looked for when somebody looks.
#[derive(Debug)]
pub(in super::super) struct PointTree {
    files: PointFiles,
    shown: OnceLock<Shown>,
}

/// Everything in `files`.
#[derive(Debug)]
struct Shown {
    directories: Vec<Directory>,
    /// By system: which directory of which volume is covered by which other.
    grafts: Vec<HashMap<(u32, NodeId), (u32, NodeId)>>,
    text: Arc<str>,
}

/// A directory in `files`.
#[derive(Debug, Clone)]
pub(in super::super) struct Directory {
    pub(in super::super) name: String,
    pub(in super::super) system: u16,
    pub(in super::super) volume: u32,
    pub(in super::super) root: NodeId,
}

impl PointTree {
    pub(super) fn new(files: PointFiles) -> Self {
        Self { files, shown: OnceLock::new() }
    }

    pub(in super::super) fn files(&self) -> &PointFiles {
        &self.files
    }

    /// The file system of a volume. Blocks if it is not open.
    pub(in super::super) fn fs(&self, volume: u32) -> Result<Arc<GuestFs>, Error> {
        self.files.fs(volume as usize)
    }

    /// The directories, and the text. Blocks the first time.
    pub(in super::super) fn directories(&self) -> Result<&[Directory], Error> {
        Ok(&self.shown()?.directories)
    }

    /// What can be known of all volumes, in words. Blocks the first time.
    pub(in super::super) fn text(&self) -> Result<Arc<str>, Error> {
        Ok(Arc::clone(&self.shown()?.text))
    }

    /// What is seen in a system's tree instead of a node, if a volume is mounted upon it.
    pub(in super::super) fn covered(
        &self,
        system: u16,
        volume: u32,
        id: NodeId,
    ) -> Option<(u32, NodeId)> {
        let grafts = self.shown.get()?.grafts.get(usize::from(system).checked_sub(1)?)?;
        grafts.get(&(volume, id)).copied()
    }

    fn shown(&self) -> Result<&Shown, Error> {
        if let Some(shown) = self.shown.get() {
            return Ok(shown);
        }
        let shown = self.look()?;
        Ok(self.shown.get_or_init(|| shown))
    }

    fn look(&self) -> Result<Shown, Error> {
        let tree = self.files.volumes()?;
        let mut text = about(&tree);
        let mut directories = Vec::new();
        for (index, volume) in tree.volumes.iter().enumerate() {
            if !matches!(volume.content, Content::FileSystem(_)) {
                continue;
            }
            match self.files.fs(index) {
                Ok(fs) => directories.push(Directory {
                    name: directory_name(&volume.name),
                    system: 0,
                    volume: index as u32,
                    root: fs.root(),
                }),
                Err(e) => {
                    let _ = writeln!(text, "\n{} cannot be opened: {e}", volume.name);
                }
            }
        }
        let systems = self.files.systems()?;
        let mut grafts = Vec::with_capacity(systems.len());
        for (number, system) in (1..).zip(systems) {
            let Some(root) = system.mounts().first() else { continue };
            let name = if number == 1 { MOUNTED.into() } else { format!("{MOUNTED}-{number}") };
            let (volume, root_id) = (root.volume as u32, root.root);
            directories.push(Directory { name, system: number, volume, root: root_id });
            let mut covers = HashMap::new();
            for mount in &system.mounts()[1..] {
                // The directory below, without this volume upon it.
                let open =
                    |volume: usize| -> Result<Arc<dyn backstay_guestfs::fs::FileSystem>, Error> {
                        Ok(self.files.fs(volume)?)
                    };
                if let Ok(below) = system.covered_by(mount, &open) {
                    let node = (below.volume as u32, below.node);
                    covers.insert(node, (mount.volume as u32, mount.root));
                }
            }
            grafts.push(covers);
            for missing in system.missing() {
                let _ =
                    writeln!(text, "\nThe guest also mounts what is not on these disks: {missing}");
            }
        }
        Ok(Shown { directories, grafts, text: text.into() })
    }
}

/// A volume's name as a directory: `vg-one/root` as `vg--one-root`, which is how Linux calls its device.
fn directory_name(volume: &str) -> String {
    let parts: Vec<String> = match volume.contains('/') {
        true => volume.split('/').map(|part| part.replace('-', "--")).collect(),
        false => vec![volume.to_owned()],
    };
    names::safe(&parts.join("-"))
}

/// What there is, a line each, and what can be done where no directory is.
fn about(tree: &VolumeTree) -> String {
    let mut text = String::from("What is on the disks of this recovery point:\n\n");
    for volume in &tree.volumes {
        let Volume { name, content, label, size_bytes, .. } = volume;
        let label = if label.is_empty() { String::new() } else { format!("  \"{label}\"") };
        let _ = writeln!(text, "{name:<24} {content}{label}  {size_bytes} bytes");
        for note in volume.error.iter().chain(&volume.notes) {
            let _ = writeln!(text, "{:<24} {note}", "");
        }
        if matches!(content, Content::Luks { .. } | Content::Other(_) | Content::LvmLv) {
            let _ = writeln!(
                text,
                "{:<24} To read it elsewhere: backstay mount nbd, or backstay mount iscsi.",
                ""
            );
        }
    }
    for note in &tree.notes {
        let _ = writeln!(text, "\n{note}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_volumes_as_directories() {
        assert_eq!(directory_name("disk0p2"), "disk0p2");
        assert_eq!(directory_name("my-disk"), "my-disk");
        assert_eq!(directory_name("vg-one/root"), "vg--one-root");
        assert_ne!(directory_name("a-b/c"), directory_name("a/b-c"));
    }
}
