"""A stock initiator for tests: libiscsi (package libiscsi7), called by its C interface.

Arguments: a URI as libiscsi has them, the target's own CHAP name and secret ('' for none), then what to do, one after
the other: `read LENGTH FILE`, `write OFFSET LENGTH BYTE`, `flush`, `reserve` (for itself alone to write), `hold` (until standard input ends). The environment's
INITIATOR is its name.
"""
import ctypes as c, os, re, sys

lib = c.CDLL("libiscsi.so.7")
for name in ("iscsi_create_context", "iscsi_scsi_command_sync", "iscsi_readcapacity10_sync", "scsi_cdb_read16",
             "scsi_cdb_write16", "scsi_cdb_synchronizecache10", "iscsi_persistent_reserve_out_sync"):
    getattr(lib, name).restype = c.c_void_p
lib.iscsi_get_error.restype = c.c_char_p
BLOCK = 512


class Data(c.Structure):
    _fields_ = [("size", c.c_size_t), ("data", c.c_char_p)]


class Keys(c.Structure):
    _fields_ = [("own", c.c_uint64), ("new", c.c_uint64), ("flags", c.c_uint8 * 3)]


def fail(what):
    sys.exit(f"{what}: {lib.iscsi_get_error(context).decode()}")


def command(cdb, out=None, into=None):
    """Sends a command; its status must be GOOD."""
    cdb = c.c_void_p(cdb)
    data = None
    if into is not None:
        lib.scsi_task_add_data_in_buffer(cdb, len(into), into)
    if out is not None:
        data = c.byref(Data(len(out), out))
    check(lib.iscsi_scsi_command_sync(context, lun, cdb, data))


def check(task):
    status = c.cast(task, c.POINTER(c.c_int))[0] if task else -1
    if status != 0:
        fail("RESERVATION_CONFLICT" if status == 0x18 else "command")


name = os.environ.get("INITIATOR", "iqn.2001-04.com.example:tester")
uri, target_name, target_secret = sys.argv[1:4]
user, secret, portal, target, lun = re.fullmatch(r"iscsi://(?:([^%]+)%([^@]+)@)?([^/]+)/([^/]+)/(\d+)", uri).groups()
lun = int(lun)
context = c.c_void_p(lib.iscsi_create_context(name.encode()))
# The same port every time: reservations are a port's.
lib.iscsi_set_isid_en(context, 42, 1)
lib.iscsi_set_targetname(context, target.encode())
lib.iscsi_set_session_type(context, 2)
lib.iscsi_set_noautoreconnect(context, 1)
if user:
    lib.iscsi_set_initiator_username_pwd(context, user.encode(), secret.encode())
if target_name:
    lib.iscsi_set_target_username_pwd(context, target_name.encode(), target_secret.encode())
if lib.iscsi_full_connect_sync(context, portal.encode(), lun) != 0:
    fail("login")
words = iter(sys.argv[4:])
for word in words:
    if word == "read":
        size, part = int(next(words)), 256 * BLOCK
        with open(next(words), "wb") as file:
            for at in range(0, size, part):
                # The last block of a disk may be shorter than the unit's.
                wanted = -(-min(part, size - at) // BLOCK) * BLOCK
                into = c.create_string_buffer(wanted)
                command(lib.scsi_cdb_read16(c.c_uint64(at // BLOCK), wanted, BLOCK, 0, 0, 0, 0, 0), into=into)
                file.write(into.raw[: size - at])
    elif word == "write":
        offset, length, byte = (int(next(words)) for _ in range(3))
        for at in range(offset, offset + length, 65536):
            out = bytes([byte]) * min(65536, offset + length - at)
            command(lib.scsi_cdb_write16(c.c_uint64(at // BLOCK), len(out), BLOCK, 0, 0, 0, 0, 0), out=out)
    elif word == "flush":
        command(lib.scsi_cdb_synchronizecache10(0, 0, 0, 0))
    elif word == "reserve":
        # REGISTER AND IGNORE EXISTING KEY, then RESERVE as write exclusive.
        for action, keys in ((6, Keys(0, 7)), (1, Keys(7, 0))):
            check(lib.iscsi_persistent_reserve_out_sync(context, lun, action, 0, 1, c.byref(keys)))
    elif word == "hold":
        print("here", flush=True)
        sys.stdin.read()
lib.iscsi_logout_sync(context)
