//! What `ls`, `cat` and `get` share: from a name to the files of a recovery point.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use backstay_core::file_name::FileName;
use backstay_daemon::{FoundTree, PointFiles};
use backstay_guestfs::apart::ReaderCommand;
use backstay_guestfs::joined::LeftOut;
use backstay_store::{PointList, RecoveryPoint, Repository};
use jiff::Zoned;
use serde::Serialize;

use crate::context::Ctx;
use crate::exit::CliError;
use crate::output::clean;

/// A recovery point whose files are asked for.
pub(crate) struct Browsed {
    pub(crate) point: RecoveryPoint,
    pub(crate) files: PointFiles,
    pub(crate) name: FileName,
}

/// This program again, as a reader of guests' file systems.
pub(crate) fn reader() -> Result<ReaderCommand, CliError> {
    let program: PathBuf = std::env::current_exe()
        .map_err(|error| CliError::io("cannot find this program for the reader", &error))?;
    Ok(ReaderCommand { program, args: vec!["read-guest".into()] })
}

/// Opens what `written` names.
pub(crate) fn open(ctx: &Ctx, written: &OsStr) -> Result<Browsed, CliError> {
    let name = FileName::parse(written.as_bytes())?;
    let repository = ctx.open()?;
    let point = point(&repository, &name)?;
    let files = PointFiles::open(&repository, &point, reader()?)?;
    Ok(Browsed { point, files, name })
}

/// The recovery point a name means.
pub(crate) fn point(repository: &Repository, name: &FileName) -> Result<RecoveryPoint, CliError> {
    point_of(&repository.points()?, name)
}

/// The one of these recovery points that a name means.
pub(crate) fn point_of(points: &PointList, name: &FileName) -> Result<RecoveryPoint, CliError> {
    let found = name.point.resolve(points, &Zoned::now());
    found.cloned().map_err(|error| {
        let told = CliError::from(error).what(name.to_string());
        if told.message.contains("backstay list") {
            return told;
        }
        told.hint("backstay list      shows all recovery points")
    })
}

/// What the guest mounts in a tree and could not be shown there, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct LeftOutView {
    path: String,
    why: String,
}

/// What is left out at `found` or below it.
pub(crate) fn left_out(found: &FoundTree) -> Vec<LeftOutView> {
    let view = |left: &LeftOut| LeftOutView { path: left.path.clone(), why: left.why.clone() };
    found.fs.left_out(&found.path).map(view).collect()
}

/// The same for people.
pub(crate) fn show_left_out(to: &mut String, left_out: &[LeftOutView]) {
    for left in left_out {
        to.push_str(&format!("not there: {}: {}\n", clean(&left.path), clean(&left.why)));
    }
}

/// Bytes of a guest's name as text: what is not UTF-8 is written as `\xNN`, and so is a backslash before an `x`.
pub(crate) fn text(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_text() {
        assert_eq!(text("größe".as_bytes()), "größe");
        assert_eq!(text(b"latin-\xe4.txt"), "latin-\\xe4.txt");
    }
}
