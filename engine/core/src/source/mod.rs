//! Disk images as block devices: what a guest would see, whatever the file's format.
//!
//! Raw files and block devices are read here, exports of NBD servers by our own client. The other formats are read by QEMU, after
//! our own bounded look at their headers: an image never decides which other file is opened. What
//! it stands on has to be named by the user ([`SourceSpec::backing`]).

mod bytes;
mod format;
mod in_use;
mod qcow2;
mod qemu;
mod remote;
mod vdi;
mod vhdx;
mod vmdk;
mod watch;

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_blockdev::{BlockDevice, FileDevice};
use backstay_format::point::check_name;

pub use format::ImageFormat;

use crate::backup::ChangeMap;
use crate::error::{Error, ErrorKind, Result};
use crate::tool::Tools;
use qemu::Layer;
use watch::Watched;

/// Longest chain of backing files that is opened.
const BACKING_MAX: usize = 64;

/// What the user says about one disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSpec {
    /// The image: a file or a block device, or the URI of an NBD export (`nbd://`, `nbds://`,
    /// `nbd+unix://`, `nbds+unix://`).
    pub path: PathBuf,
    /// Its format. `None`: by the file's extension (a block device is raw). The first bytes must
    /// agree, except with `Raw` said here.
    pub format: Option<ImageFormat>,
    /// The backing files of a qcow2 image, the one it stands on first. Their formats are taken from
    /// their extensions.
    pub backing: Vec<PathBuf>,
    /// The disk's name in the recovery point. `None`: `disk0`, `disk1`, ... by position.
    pub name: Option<String>,
    /// What changed since an earlier point, if the source knows.
    pub changes: Option<ChangeMap>,
}

impl SourceSpec {
    /// The image at `path`, with nothing else said.
    pub fn new(path: impl Into<PathBuf>) -> SourceSpec {
        SourceSpec {
            path: path.into(),
            format: None,
            backing: Vec::new(),
            name: None,
            changes: None,
        }
    }

    /// Reads `PATH` or `NAME=PATH`. What stands before the first `=` is a name unless it holds a
    /// `/`; a file whose own name holds a `=` is written `./a=b.img`.
    pub fn parse(text: &str) -> Result<SourceSpec> {
        let Some((name, path)) = text.split_once('=').filter(|(name, _)| !name.contains('/'))
        else {
            return Ok(SourceSpec::new(text));
        };
        if path.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, format!("`{text}` names no image file")));
        }
        check_disk_name(name)?;
        Ok(SourceSpec { name: Some(name.to_owned()), ..SourceSpec::new(path) })
    }
}

/// Whether a disk may have this name.
pub(crate) fn check_disk_name(name: &str) -> Result<()> {
    check_name("disk", name).map_err(|e| Error::new(ErrorKind::Invalid, e.to_string()))
}

/// An image that is open for reading.
#[derive(Debug)]
pub struct OpenSource {
    /// The guest-visible bytes, read-only. Processes that serve it end when the last clone goes.
    pub device: Arc<dyn BlockDevice>,
    /// The format it was opened with.
    pub format: ImageFormat,
    /// The size the guest sees, in bytes; never 0.
    pub size_bytes: u64,
    /// Things the user should know, for [`crate::monitor::Monitor::problem`].
    pub warnings: Vec<String>,
    /// A block device that is mounted or otherwise held: it may change at any time, unnoticed.
    pub in_use: bool,
    watched: Vec<Watched>,
}

impl OpenSource {
    /// A device of this process that nobody writes to.
    pub(crate) fn of_device(device: Arc<dyn BlockDevice>) -> OpenSource {
        OpenSource {
            size_bytes: device.geometry().size_bytes,
            device,
            format: ImageFormat::Raw,
            warnings: Vec::new(),
            in_use: false,
            watched: Vec::new(),
        }
    }

    /// What was written to since [`open`], in words; `None` if nothing was. Only files can be
    /// watched, not block devices (see [`OpenSource::in_use`]).
    pub fn change(&self) -> Result<Option<String>> {
        for watched in &self.watched {
            if let Some(change) = watched.change()? {
                return Ok(Some(change));
            }
        }
        Ok(None)
    }
}

/// Opens an image for reading. Refuses images that name other files which the user did not, and
/// images QEMU finds damaged.
pub fn open(spec: &SourceSpec) -> Result<OpenSource> {
    open_with(&Tools::default(), spec)
}

pub(crate) fn open_with(tools: &Tools, spec: &SourceSpec) -> Result<OpenSource> {
    if let Some(uri) = remote::uri(&spec.path) {
        return remote::open(spec, uri);
    }
    let mut found = Found::default();
    let layer = resolve(spec, &mut found)?;
    let device: Arc<dyn BlockDevice> = if layer.format == ImageFormat::Raw {
        Arc::new(FileDevice::open(&layer.path, true)?)
    } else {
        qemu::check(tools, &layer)?;
        qemu::open(tools, &layer)?
    };
    let size_bytes = device.geometry().size_bytes;
    if size_bytes == 0 {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("{} is empty: a disk has at least one byte", spec.path.display()),
        ));
    }
    let Found { watched, warnings, in_use } = found;
    Ok(OpenSource { device, format: layer.format, size_bytes, warnings, in_use, watched })
}

/// What is gathered on the way down a chain of images.
#[derive(Debug, Default)]
struct Found {
    watched: Vec<Watched>,
    warnings: Vec<String>,
    in_use: bool,
}

/// One file of a chain, and the name of the file it says it stands on.
struct Image {
    layer: Layer,
    stands_on: Option<String>,
}

/// Looks at the image and at the backing files the user named, top first.
fn resolve(spec: &SourceSpec, found: &mut Found) -> Result<Layer> {
    if spec.backing.len() > BACKING_MAX {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{}: more than {BACKING_MAX} backing files", spec.path.display()),
        ));
    }
    let mut chain = vec![look(&spec.path, spec.format, found)?];
    for path in &spec.backing {
        let above = chain.last().map(|i| (i.layer.path.clone(), i.stands_on.clone()));
        let Some((above, Some(said))) = above else {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{} is named as a backing file, but nothing stands on it", path.display()),
            ));
        };
        if Path::new(&said).file_name() != path.file_name() {
            found.warnings.push(format!(
                "{} says it stands on {said:?}; {} is used, as you said",
                above.display(),
                path.display()
            ));
        }
        let image =
            look(path, None, found).map_err(|e| e.within("a backing file cannot be used"))?;
        chain.push(image);
    }
    if let Some(Image { layer, stands_on: Some(said) }) = chain.last() {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "{} stands on another image, {said:?}, which is never opened on an image's word: \
                 name it with --backing",
                layer.path.display()
            ),
        ));
    }
    let mut top: Option<Layer> = None;
    for mut image in chain.into_iter().rev() {
        image.layer.below = top.take().map(Box::new);
        top = Some(image.layer);
    }
    top.ok_or_else(|| Error::new(ErrorKind::Invalid, "no image was named"))
}

/// Looks at one file: what it is, whether its format is what was said, and what else it names.
fn look(path: &Path, said: Option<ImageFormat>, found: &mut Found) -> Result<Image> {
    // Before opening, because opening a FIFO waits for its other end.
    let meta = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    let block_device = meta.file_type().is_block_device();
    if !meta.is_file() && !block_device {
        let what = if meta.is_dir() { "is a directory" } else { "is no file" };
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("{} {what}; a disk image file or a block device is needed", path.display()),
        ));
    }
    let real = path.canonicalize().map_err(|e| Error::io("find", path, e))?;
    let file = File::open(&real).map_err(|e| Error::io("open", path, e))?;
    let mut head = [0u8; format::SIGNATURE_BYTES];
    let got = bytes::read_up_to(path, &file, 0, &mut head)?;
    let format = format::settle(path, said, block_device, head.get(..got).unwrap_or_default())?;
    let mut stands_on = None;
    match format {
        ImageFormat::Raw => {}
        ImageFormat::Qcow2 => stands_on = qcow2::read_header(&real, &file)?.backing,
        ImageFormat::Vdi => vdi::check(&real, &file)?,
        ImageFormat::Vhdx => vhdx::check(&real, &file)?,
        ImageFormat::Vmdk => {
            for extent in vmdk::check(&real, &file)? {
                let part = File::open(&extent).map_err(|e| Error::io("open", &extent, e))?;
                found.watched.push(Watched::new(&extent, part)?);
            }
        }
    }
    if block_device {
        found.in_use |= in_use::is_held(&real)?;
    } else {
        found.watched.push(Watched::new(&real, file)?);
    }
    Ok(Image { layer: Layer { path: real, format, block_device, below: None }, stands_on })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_from_paths() {
        let name = |text: &str| SourceSpec::parse(text).map(|s| (s.name, s.path));
        let some = |n: &str, p: &str| (Some(n.to_owned()), PathBuf::from(p));
        assert_eq!(name("a.img").unwrap(), (None, "a.img".into()));
        assert_eq!(name("root=a.img").unwrap(), some("root", "a.img"));
        assert_eq!(name("root=/x/a=b.img").unwrap(), some("root", "/x/a=b.img"));
        assert_eq!(name("./a=b.img").unwrap(), (None, "./a=b.img".into()));
        for bad in ["root=", "=a.img", "a:b=x.img", "..=x.img"] {
            assert_eq!(name(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn a_missing_qemu_is_told_with_its_package() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.qcow2");
        let mut head = vec![0u8; 65536];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[7] = 3;
        std::fs::write(&path, head).unwrap();
        let tools = Tools { qemu_img: "/nonexistent/i".into(), qemu_nbd: "/nonexistent/n".into() };
        let error = open_with(&tools, &SourceSpec::new(path)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("qemu-utils"), "{error}");
    }
}
