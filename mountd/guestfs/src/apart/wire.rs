//! What parent and child say to each other.
//!
//! A frame is a length (`u32`, little-endian, of what follows), a tag and a body. Either side may be lied to by the other's bugs, and the
//! parent by a child that was taken over: lengths are bounded, and whatever does not decode ends the conversation.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::fs::{DirCookie, DirEntry, FsInfo, NodeId, Stat, Xattr};
use crate::volumes::VolumeTree;
use crate::{Error, ErrorKind};

/// The longest body. An answer is at most 16 MiB of extended attributes and their names.
const BODY_MAX: usize = 17 << 20;
/// The most bytes of a disk, or of a file, in one frame.
pub(super) const PIECE_MAX: usize = 1 << 20;

/// Parent to child: do this.
pub(super) const REQUEST: u8 = b'Q';
/// Child to parent: done; the body is a [`Result`] of an [`Answer`].
pub(super) const ANSWER: u8 = b'A';
/// Child to parent: done; the body is the content asked for.
pub(super) const CONTENT: u8 = b'C';
/// Child to parent: a [`Want`].
pub(super) const WANT: u8 = b'W';
/// Child to parent: a [`Want`] that may come soon; no reply.
pub(super) const HINT: u8 = b'H';
/// Parent to child: the bytes wanted.
pub(super) const BLOCK: u8 = b'B';
/// Parent to child: a [`Failure`] instead of bytes.
pub(super) const NO_BLOCK: u8 = b'N';

/// What the child is told first, on its standard input, together with its lanes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) disks: Vec<DiskHello>,
    pub(super) memory_bytes: u64,
}

/// A disk, to the child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DiskHello {
    pub(super) name: String,
    pub(super) size_bytes: u64,
}

/// What the child answers to that.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ready {
    /// It can do nothing but read from now on.
    Confined,
    /// It cannot be confined, so it does nothing at all.
    Refused(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// What is on the disks.
    Volumes,
    /// Something of the file system of a volume, by its place in the list.
    In(u32, FsRequest),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FsRequest {
    Open,
    Lookup {
        dir: NodeId,
        name: Vec<u8>,
    },
    /// Entries with their metadata.
    ReadDir {
        dir: NodeId,
        from: DirCookie,
        max: u32,
    },
    Stat(NodeId),
    Read {
        node: NodeId,
        offset_bytes: u64,
        len_bytes: u32,
    },
    ReadLink(NodeId),
    Xattrs(NodeId),
    Extents {
        node: NodeId,
        offset_bytes: u64,
        len_bytes: u64,
        max: u32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Volumes(VolumeTree),
    Opened { info: FsInfo, root: NodeId },
    Found(Stat),
    Entries(Vec<(DirEntry, Option<Stat>)>),
    Link(Vec<u8>),
    Xattrs(Vec<Xattr>),
    Extents(Vec<DiskExtent>),
}

/// Where a range of a file is on the machine's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DiskExtent {
    pub(super) offset_bytes: u64,
    pub(super) len_bytes: u64,
    pub(super) place: DiskPlace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum DiskPlace {
    Hole,
    Unwritten,
    Disk { disk: u16, offset_bytes: u64 },
    Inside,
}

/// A range of a disk.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Want {
    pub(super) disk: u16,
    pub(super) offset_bytes: u64,
    pub(super) len_bytes: u32,
}

/// An [`Error`] on its way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Failure {
    kind: u8,
    text: String,
}

/// Kinds by their numbers on the wire.
const KINDS: [ErrorKind; 9] = [
    ErrorKind::Io,
    ErrorKind::NotFound,
    ErrorKind::NotADirectory,
    ErrorKind::IsADirectory,
    ErrorKind::Invalid,
    ErrorKind::Damaged,
    ErrorKind::Unsupported,
    ErrorKind::Encrypted,
    ErrorKind::Limit,
];
/// What is kept of an error's text.
const TEXT_MAX: usize = 2000;

impl From<&Error> for Failure {
    fn from(e: &Error) -> Self {
        let kind = KINDS.iter().position(|k| *k == e.kind()).unwrap_or(0);
        Self { kind: kind as u8, text: e.to_string().chars().take(TEXT_MAX).collect() }
    }
}

impl From<Failure> for Error {
    fn from(f: Failure) -> Self {
        let kind = KINDS.get(usize::from(f.kind)).copied().unwrap_or(ErrorKind::Io);
        Error::new(kind, f.text.chars().take(TEXT_MAX).collect::<String>())
    }
}

/// One end of a lane.
#[derive(Debug)]
pub(super) struct Lane {
    stream: BufReader<UnixStream>,
    out: Vec<u8>,
    body: Vec<u8>,
}

impl Lane {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream), out: Vec::new(), body: Vec::new() }
    }

    /// How long a read may wait for the other side.
    pub(super) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(patience)
    }

    /// The socket below.
    pub(super) fn socket(&self) -> &UnixStream {
        self.stream.get_ref()
    }

    /// Sends a message.
    pub(super) fn send(&mut self, tag: u8, message: &impl Serialize) -> io::Result<()> {
        self.out.clear();
        self.out.extend([0, 0, 0, 0, tag]);
        let out = postcard::to_extend(message, std::mem::take(&mut self.out));
        self.out = out.map_err(|e| invalid(format!("cannot say it: {e}")))?;
        let len = self.out.len() - 4;
        if len > BODY_MAX {
            return Err(invalid(format!("{len} bytes in one message")));
        }
        self.out[..4].copy_from_slice(&(len as u32).to_le_bytes());
        self.stream.get_mut().write_all(&self.out)
    }

    /// Sends bytes as they are.
    pub(super) fn send_bytes(&mut self, tag: u8, bytes: &[u8]) -> io::Result<()> {
        self.out.clear();
        self.out.extend((bytes.len() as u32 + 1).to_le_bytes());
        self.out.push(tag);
        self.out.extend(bytes);
        self.stream.get_mut().write_all(&self.out)
    }

    /// The next frame: its tag, and its body until the next call. An end of file is an error of kind `UnexpectedEof`.
    pub(super) fn receive(&mut self) -> io::Result<(u8, &[u8])> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some(len) = len.checked_sub(1).filter(|len| *len <= BODY_MAX) else {
            return Err(invalid(format!("a message of {len} bytes")));
        };
        self.body.resize(len, 0);
        self.stream.read_exact(&mut self.body)?;
        Ok((head[4], &self.body))
    }
}

/// What a body says.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    postcard::from_bytes(body).map_err(|e| invalid(format!("a message that says nothing: {e}")))
}

pub(super) fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
