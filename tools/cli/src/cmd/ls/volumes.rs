//! The volumes on a machine's disks, for people and programs.

use backstay_guestfs::fs::FileSystem as _;
use backstay_guestfs::volumes::{Content, VolumeTree};
use serde::Serialize;

use crate::browse::Browsed;
use crate::context::Ctx;
use crate::exit::{CliError, Exit};
use crate::output::{Align, Table, clean};
use crate::units;

#[derive(Serialize)]
struct Document {
    machine: String,
    point: String,
    volumes: Vec<View>,
    systems: Vec<System>,
}

#[derive(Serialize)]
struct View {
    name: String,
    on: Vec<String>,
    content: String,
    label: String,
    uuid: Option<String>,
    size_bytes: u64,
    used_bytes: Option<u64>,
    notes: Vec<String>,
    error: Option<String>,
    /// Where the guest mounts it.
    mounted_at: Vec<String>,
}

/// A guest's own table of mounts.
#[derive(Serialize)]
struct System {
    root: String,
    missing: Vec<String>,
}

/// Lists them, or the one that was named with what lies on it.
pub(super) fn list(ctx: &Ctx, browsed: &Browsed) -> Result<Exit, CliError> {
    let named = browsed.name.to_string();
    let failed = |error: backstay_guestfs::Error| CliError::from(error).what(named.clone());
    let tree = browsed.files.volumes().map_err(failed)?;
    let systems = browsed.files.systems().map_err(failed)?;
    let mut volumes: Vec<View> = (0..tree.volumes.len()).map(|i| view(&tree, i)).collect();
    for (index, volume) in volumes.iter_mut().enumerate() {
        if !matches!(tree.volumes[index].content, Content::FileSystem(_)) || volume.error.is_some()
        {
            continue;
        }
        match browsed.files.fs(index) {
            Ok(fs) => {
                volume.used_bytes = fs.info().used_bytes;
                volume.notes.extend(fs.info().notes.iter().cloned());
            }
            Err(error) => volume.error = Some(error.to_string()),
        }
    }
    let mut found = Vec::new();
    for system in systems {
        for mount in system.mounts() {
            if let Some(volume) = volumes.get_mut(mount.volume) {
                volume.mounted_at.push(mount.path.clone());
            }
        }
        let root = system.mounts().first().and_then(|m| tree.volumes.get(m.volume));
        let root = root.map(|v| v.name.clone()).unwrap_or_default();
        found.push(System {
            root,
            missing: system.missing().iter().map(ToString::to_string).collect(),
        });
    }
    if let Some(wanted) = &browsed.name.volume {
        if tree.position(wanted).is_none() {
            // The error names what there is.
            browsed.files.volume_named(wanted).map_err(failed)?;
        }
        volumes.retain(|v| v.name == *wanted || v.on.iter().any(|on| on == wanted));
    }
    let document = Document {
        machine: browsed.point.machine.clone(),
        point: browsed.point.id.to_string(),
        volumes,
        systems: found,
    };
    ctx.out.report(&document, |to| show(to, &document))?;
    Ok(Exit::Done)
}

fn view(tree: &VolumeTree, index: usize) -> View {
    let volume = &tree.volumes[index];
    let on = volume.parents.iter().filter_map(|p| tree.volumes.get(*p));
    View {
        name: volume.name.clone(),
        on: on.map(|v| v.name.clone()).collect(),
        content: volume.content.to_string(),
        label: volume.label.clone(),
        uuid: volume.uuid.clone(),
        size_bytes: volume.size_bytes,
        used_bytes: None,
        notes: volume.notes.clone(),
        error: volume.error.clone(),
        mounted_at: Vec::new(),
    }
}

fn show(to: &mut String, document: &Document) {
    let mut table = Table::new(&[
        ("VOLUME", Align::Left),
        ("CONTENT", Align::Left),
        ("SIZE", Align::Right),
        ("USED", Align::Right),
        ("LABEL", Align::Left),
        ("MOUNTED AT", Align::Left),
    ]);
    for volume in &document.volumes {
        table.row([
            volume.name.clone(),
            volume.content.clone(),
            units::size(volume.size_bytes),
            volume.used_bytes.map_or_else(String::new, units::size),
            volume.label.clone(),
            volume.mounted_at.join(" "),
        ]);
    }
    table.render(to);
    for volume in &document.volumes {
        for text in volume.error.iter().chain(&volume.notes) {
            to.push_str(&format!("{}: {}\n", clean(&volume.name), clean(text)));
        }
    }
    for system in &document.systems {
        for line in &system.missing {
            to.push_str(&format!("not on these disks: {}\n", clean(line)));
        }
    }
}
