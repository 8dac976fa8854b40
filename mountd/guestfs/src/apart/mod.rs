//! Readers in a process apart.
//!
//! Whoever made a disk may have made it to break its reader. So what parses it runs in a child process that can do nothing
//! else: it has no file, no network and no way to start anything (seccomp), a bound on memory, and a few sockets to its
//! parent. Over these "lanes" it is asked, and asks back for blocks of the disks while it works on an answer:
//!
//! ```text
//!   parent                                   child
//!   Guest, GuestFs  --- request ---------->  lane thread: scan, open, lookup, list, stat, extents ...
//!                   <-- wants a block -----  RemoteDisk
//!     reads it from the disk
//!                   --- block ------------>
//!                   <-- answer ------------
//! ```
//!
//! Content of files does not pass through the child: it answers where the content lies, and the parent, having checked
//! that against the size of the disk, reads it there. Only what must be decoded comes from the child.
//!
//! A reader that dies or hangs costs the call that met it, which fails; the next call starts another child. Nodes keep their
//! ids over that, because a [`FileSystem`](crate::fs::FileSystem) gives the same ids over the same bytes.

mod child;
mod content;
mod guest;
mod guest_fs;
mod jail;
mod process;
mod remote_disk;
mod wire;

use std::ffi::OsString;
use std::path::PathBuf;

pub use child::reader_main;
pub use content::OpenContent;
pub use guest::Guest;
pub use guest_fs::GuestFs;

/// How to start a reader: the program is run with these arguments and must call [`reader_main`]. Its standard input is a socket
/// to the parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderCommand {
    /// The program, as an absolute path: readers run in `/`.
    pub program: PathBuf,
    /// What makes it a reader, such as `read-guest`.
    pub args: Vec<OsString>,
}
