//! A tree as a zip archive, for people who have nothing else.
//!
//! Zip holds names, content, permissions and links. It does not hold owners, attributes, marks, further
//! names of a file (they become files of their own), holes, devices, pipes, and of times only whole seconds
//! from 1980 to 2107 in UTC. Names are UTF-8. All that is told in the report.

use std::cell::Cell;
use std::io::{self, Write};

use ::zip::result::ZipError;
use ::zip::write::{SimpleFileOptions, StreamWriter};
use ::zip::{CompressionMethod, DateTime, ZipWriter};
use backstay_guestfs::fs::{NodeKind, Stat, Time};

pub use super::archive::Options;
use super::archive::{Body, Content, Format, Item, Run, add_all};
use super::{Report, Tree, What};
use crate::error::{Error, ErrorKind, Result, kind_of_io};
use crate::monitor::Monitor;

/// Writes `tree` to `out` as a zip archive; `out` is never sought in. Files larger than 4 GiB, and more than
/// 65,535 of them, take the format's later forms (zip64). The list of all entries is held in memory.
///
/// Ends as [`tar::write`](super::tar::write) does; an archive that ended early has no list at its end, so
/// no reader takes it for whole.
pub fn write(
    tree: Tree<'_>,
    out: &mut dyn Write,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Report> {
    let shut = Cell::new(false);
    let gate = Gate { out, shut: &shut };
    let mut zip = Zip { writer: ZipWriter::new_stream(gate) };
    match add_all(tree, options, monitor, &mut zip) {
        Ok(report) => {
            let mut gate = zip.writer.finish().map_err(failed)?.into_inner();
            gate.flush().map_err(|e| failed(ZipError::Io(e)))?;
            Ok(report)
        }
        Err(error) => {
            // The writer would put the list at the end as it is dropped.
            shut.set(true);
            Err(error)
        }
    }
}

/// Lets nothing through any more once it is shut.
struct Gate<'a> {
    out: &'a mut dyn Write,
    shut: &'a Cell<bool>,
}

impl Write for Gate<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.shut.get() {
            return Ok(buf.len());
        }
        // An error may be followed by the end of the writer, which would go on.
        self.out.write(buf).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.shut.set(true);
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.shut.get() { Ok(()) } else { self.out.flush() }
    }
}

struct Zip<'a> {
    writer: ZipWriter<StreamWriter<Gate<'a>>>,
}

impl Format for Zip<'_> {
    fn add(&mut self, item: &Item, run: &mut Run<'_>) -> Result<bool> {
        let stat = &item.stat;
        let name = name(item, run);
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .unix_permissions(u32::from(stat.mode & 0o1777))
            .large_file(stat.size_bytes >= u64::from(u32::MAX))
            .last_modified_time(time(stat.modified));
        let begun = match &item.body {
            Body::Special => {
                run.report.note(&item.path, What::Device, "zip holds no pipes and devices");
                return Ok(false);
            }
            // None come, as `further_names` says.
            Body::HardLink(_) => return Ok(false),
            Body::Directory => self.writer.add_directory(name, options),
            Body::Symlink(target) => match std::str::from_utf8(target) {
                Ok(target) => self.writer.add_symlink(name, target, options),
                Err(_) => {
                    run.report.note(&item.path, What::NotWritten, "the link leads to no text");
                    return Ok(false);
                }
            },
            Body::File(_) => self.writer.start_file(name, options),
        };
        match begun {
            Ok(()) => {}
            // Nothing was written: two names became one, or one is too long.
            Err(ZipError::InvalidArchive(why)) => {
                run.report.note(&item.path, What::Collides, why);
                return Ok(false);
            }
            Err(error) => return Err(failed(error)),
        }
        lost(item, run);
        if let Body::File(content) = &item.body {
            if is_sparse(content, stat.size_bytes) {
                run.report.note(&item.path, What::Sparse, "holes became zeros");
            }
            run.copy(item, content, false, &mut self.writer)?;
        }
        Ok(true)
    }

    fn further_names(&self) -> bool {
        false
    }
}

fn is_sparse(content: &Content, size: u64) -> bool {
    content.ranges.iter().map(|data| data.len).sum::<u64>() != size
}

/// The name as the archive has it: what is no UTF-8, and what would be a separator on some systems, is
/// written as `%XX`.
fn name(item: &Item, run: &mut Run<'_>) -> String {
    let mut name = String::with_capacity(item.path.len());
    let mut changed = false;
    for chunk in item.path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' || c.is_control() {
                changed = true;
                name.push_str(&format!("%{:02X}", u32::from(c)));
            } else {
                name.push(c);
            }
        }
        for byte in chunk.invalid() {
            changed = true;
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    if changed {
        run.report.note(&item.path, What::Name, format!("is named {name:?} in the archive"));
    }
    name
}

/// Tells what of the metadata the format does not hold.
fn lost(item: &Item, run: &mut Run<'_>) {
    let Stat { mode, uid, gid, modified, attributes, .. } = item.stat;
    let mut note = |what, text: &str| run.report.note(&item.path, what, text);
    if (uid, gid) != (0, 0) {
        note(What::Owner, "zip holds no owner");
    }
    if mode & 0o6000 != 0 {
        note(What::Mode, "setuid and setgid are not kept in zip");
    }
    for xattr in &item.xattrs {
        let name = super::shown(&xattr.name);
        note(What::Xattr, &format!("zip does not hold the attribute {name}"));
    }
    if attributes.immutable || attributes.append_only {
        note(What::Flags, "immutable or append-only not kept");
    }
    // The format counts in steps of two seconds.
    if modified.nanos != 0 || modified.seconds % 2 != 0 || date(modified).is_none() {
        note(What::Times, "zip holds even seconds from 1980 to 2107");
    }
    if item.stat.kind == NodeKind::File && item.stat.links > 1 {
        note(What::HardLink, "names of one file are files of their own in zip");
    }
}

/// A time in UTC; the format's first moment for those it has not.
fn time(time: Time) -> DateTime {
    date(time).unwrap_or_default()
}

fn date(time: Time) -> Option<DateTime> {
    let utc = jiff::Timestamp::from_second(time.seconds).ok()?.to_zoned(jiff::tz::TimeZone::UTC);
    let small = |number: i8| u8::try_from(number).ok();
    DateTime::from_date_and_time(
        u16::try_from(utc.year()).ok()?,
        small(utc.month())?,
        small(utc.day())?,
        small(utc.hour())?,
        small(utc.minute())?,
        small(utc.second())?,
    )
    .ok()
}

fn failed(error: ZipError) -> Error {
    let kind = match &error {
        ZipError::Io(error) => kind_of_io(error),
        _ => ErrorKind::Io,
    };
    Error::new(kind, "cannot write the archive").caused_by(error)
}
