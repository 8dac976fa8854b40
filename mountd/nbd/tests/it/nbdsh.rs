//! `nbdsh`, the shell over libnbd: requests that no tool sends, over a client that is not ours.

use backstay_blockdev::MemDevice;

use crate::support::{Server, disk, run_ok, tool};

const SIZE: usize = 1 << 20;

/// What is asked of the server. `h` is libnbd's handle; its own checks are off, so that it sends whatever
/// it is told to.
const SCRIPT: &str = r#"
import errno, os, nbd
h.add_meta_context('base:allocation')
h.connect_uri(os.environ['URI'])
h.set_strict_mode(0)
size = h.get_size()
assert size == 1 << 20, size
assert h.get_structured_replies_negotiated() and h.can_multi_conn() and h.can_fast_zero()

def refused(wanted, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == wanted, (error.string, error.errnum, wanted)
    else:
        raise AssertionError('%s%r was not refused' % (call.__name__, args))

# Beyond the end, and in ways that add up beyond 64 bits.
refused(errno.EINVAL, h.pread, 512, size)
refused(errno.EINVAL, h.pread, 1024, size - 512)
refused(errno.EINVAL, h.pread, 512, (1 << 63) - 512)
refused(errno.ENOSPC, h.pwrite, b'x' * 1024, size - 512)
refused(errno.ENOSPC, h.zero, 1024, size - 512)
refused(errno.EINVAL, h.trim, 1024, size - 512)
refused(errno.EINVAL, h.cache, 1024, size - 512)
refused(errno.EINVAL, h.block_status, 1024, size - 512, lambda *a: 0)
# Flags that mean nothing here.
refused(errno.EINVAL, h.trim, 512, 0, nbd.CMD_FLAG_NO_HOLE)

# Writes of every sort, and what they read as.
h.pwrite(b'a' * 4096, 0, nbd.CMD_FLAG_FUA)
h.pwrite(b'b' * 4096, 4096)
h.flush()
h.zero(1024, 512, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.cache(4096, 0)
assert h.pread(4096, 0) == b'a' * 512 + bytes(1024) + b'a' * 2560
h.trim(4096, 4096)
h.zero(4096, 8192)
assert h.pread(4096, 8192) == bytes(4096)

# In one piece, and in pieces as the server likes; each byte exactly once.
def whole(flags):
    got = bytearray(b'?' * 65536)
    seen = [0]
    def chunk(data, offset, status, error):
        assert status in (nbd.READ_DATA, nbd.READ_HOLE), status
        got[offset:offset + len(data)] = data if status == nbd.READ_DATA else bytes(len(data))
        seen[0] += len(data)
        return 0
    read = h.pread_structured(65536, 0, chunk, flags)
    if flags & nbd.CMD_FLAG_DF:
        assert seen[0] == 65536
        assert got == read
    return read
assert whole(0) == whole(nbd.CMD_FLAG_DF)

# One extent if one is asked for; all of them cover what was asked.
told = []
def extents(context, offset, entries, error):
    told.append((context, offset, list(entries)))
    return 0
h.block_status(size, 0, extents, nbd.CMD_FLAG_REQ_ONE)
assert len(told) == 1 and told[0][0] == 'base:allocation' and len(told[0][2]) == 2, told
at = 0
while at < size:
    told.clear()
    h.block_status(size - at, at, extents)
    lengths = told[0][2][0::2]
    assert all(lengths) and told[0][1] == at
    at += sum(lengths)
assert at == size

# A hundred requests at once, answered in any order.
buffers, cookies = [], []
for i in range(100):
    buffers.append(nbd.Buffer(512))
    cookies.append(h.aio_pread(buffers[i], (i * 37 % 1000) * 512))
waiting = set(cookies)
while waiting:
    h.poll(-1)
    waiting = {cookie for cookie in waiting if not h.aio_command_completed(cookie)}
for i in range(100):
    assert buffers[i].to_bytearray() == h.pread(512, (i * 37 % 1000) * 512), i
h.shutdown()
print('done')
"#;

#[test]
fn nbdsh_asks_what_no_tool_does() {
    let server = Server::start(MemDevice::new(disk(SIZE)));
    let mut nbdsh = tool("nbdsh", "python3-libnbd");
    // It runs the first Python there is, and its module is the system's.
    nbdsh.env("PATH", "/usr/bin:/bin");
    let said = run_ok(nbdsh.env("URI", server.uri_text("disk")).args(["-c", SCRIPT]));
    assert_eq!(said.trim(), "done");
}
