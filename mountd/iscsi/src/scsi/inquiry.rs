//! INQUIRY: what the unit is (SPC-4, 6.6 and 7.8; SBC-3, 6.6).

use super::device::Device;
use super::sense::Sense;
use super::table::{Answer, Call};
use super::unit::Unit;
use super::{BLOCK_BYTES, Fault, cut};

/// The longest read or write, in blocks: 8 MiB.
pub(super) const MAX_TRANSFER_BLOCKS: u32 = (8 << 20) / BLOCK_BYTES;
/// The longest compare and write.
pub(super) const MAX_COMPARE_BLOCKS: u8 = 128;
/// The longest write same: as long as a write.
pub(super) const MAX_SAME_BLOCKS: u64 = MAX_TRANSFER_BLOCKS as u64;
/// The most that one unmap takes: 512 MiB, in so many pieces.
pub(super) const MAX_UNMAP_BLOCKS: u32 = 1 << 20;
pub(super) const MAX_UNMAP_PIECES: u32 = 256;
/// What is moved best at once: 1 MiB.
const OPTIMAL_BLOCKS: u32 = (1 << 20) / BLOCK_BYTES;

const VENDOR: &[u8; 8] = b"BACKSTAY";
/// The one group of target ports, and the one port in it.
pub(super) const PORT_GROUP: u16 = 1;
pub(super) const PORT: u16 = 1;

pub(super) fn inquiry(call: &Call<'_>) -> Answer {
    let (evpd, page) = (call.cdb[1] & 0x01 != 0, call.cdb[2]);
    if call.cdb[1] & 0x02 != 0 {
        // CMDDT is obsolete.
        return Err(Sense::cdb_bit(1, 1).into());
    }
    let data = match (evpd, page) {
        (false, 0) => standard(call.unit),
        (false, _) => return Err(Sense::cdb(2).into()),
        (true, page) => vital(&call.nexus.device, call.unit, page)?,
    };
    Ok(cut(data, call.get16(3).into()))
}

/// What is answered for a unit that is not there: nothing can be.
pub(super) fn of_nothing() -> Vec<u8> {
    let mut data = vec![0; 36];
    data[0] = 0x7f;
    data[2] = 0x06;
    data[3] = 0x02;
    data[4] = 31;
    data[8..16].copy_from_slice(VENDOR);
    data[16..36].fill(b' ');
    data
}

/// Text in a field, with spaces behind it.
fn padded(field: &mut [u8], text: &str) {
    field.fill(b' ');
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
}

fn standard(unit: &Unit) -> Vec<u8> {
    let mut data = vec![0; 96];
    // SPC-4; HISUP; the format of this data.
    data[2] = 0x06;
    data[3] = 0x10 | 0x02;
    data[4] = 91;
    // TPGS: implicit asymmetric access; MULTIP; CMDQUE.
    data[5] = 0x10;
    data[6] = 0x10;
    data[7] = 0x02;
    data[8..16].copy_from_slice(VENDOR);
    padded(&mut data[16..32], &unit.identity.product);
    padded(
        &mut data[32..36],
        concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR")),
    );
    // Versions: SAM-5, iSCSI, SPC-4, SBC-3.
    for (at, version) in [0x00a0u16, 0x0960, 0x0460, 0x04c0].into_iter().enumerate() {
        data[58 + 2 * at..60 + 2 * at].copy_from_slice(&version.to_be_bytes());
    }
    data
}

fn vital(device: &Device, unit: &Unit, page: u8) -> Result<Vec<u8>, Fault> {
    let body = match page {
        0x00 => vec![0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2],
        0x80 => unit.identity.serial.as_bytes().to_vec(),
        0x83 => identification(device, unit),
        0xb0 => limits(unit),
        0xb1 => characteristics(unit),
        0xb2 => provisioning(unit),
        _ => return Err(Sense::cdb(2).into()),
    };
    let mut data = vec![0, page];
    data.extend((body.len() as u16).to_be_bytes());
    data.extend(body);
    Ok(data)
}

/// Whose name a designator is.
#[derive(Clone, Copy)]
enum Of {
    Unit = 0x00,
    Port = 0x10,
    Device = 0x20,
}

/// Code sets of designators.
const BINARY: u8 = 1;
const ASCII: u8 = 2;
const UTF8: u8 = 3;
/// iSCSI's number among protocols, and the bit that says there is one.
const ISCSI: u8 = 0x50;
const PROTOCOL_VALID: u8 = 0x80;

fn designator(code_set: u8, of: Of, kind: u8, name: &[u8]) -> Vec<u8> {
    let (protocol, valid) = match of {
        Of::Unit => (0, 0),
        Of::Port | Of::Device => (ISCSI, PROTOCOL_VALID),
    };
    let mut bytes = vec![protocol | code_set, valid | of as u8 | kind, 0, name.len() as u8];
    bytes.extend(name);
    bytes
}

/// Text with NULs behind it up to a multiple of four, at least one.
fn terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
    bytes
}

/// Device identification (SPC-4, 7.8.5): by these names initiators know that two paths lead to one disk.
fn identification(device: &Device, unit: &Unit) -> Vec<u8> {
    let naa = match unit.identity.naa[0] >> 4 {
        6 => &unit.identity.naa[..],
        _ => &unit.identity.naa[..8],
    };
    let mut vendor = VENDOR.to_vec();
    vendor.extend(unit.identity.serial.as_bytes());
    let name = &device.port.name;
    let port = terminated(&format!("{name},t,0x{PORT_GROUP:04x}"));
    [
        designator(BINARY, Of::Unit, 3, naa),
        designator(ASCII, Of::Unit, 1, &vendor),
        designator(BINARY, Of::Port, 4, &[0, 0, (PORT >> 8) as u8, PORT as u8]),
        designator(BINARY, Of::Port, 5, &[0, 0, (PORT_GROUP >> 8) as u8, PORT_GROUP as u8]),
        designator(UTF8, Of::Port, 8, &port),
        designator(UTF8, Of::Device, 8, &terminated(name)),
    ]
    .concat()
}

/// Whether blocks can be given back.
fn unmaps(unit: &Unit) -> bool {
    unit.caps.writable && (unit.caps.trim || unit.caps.write_zeroes)
}

/// Block limits (SBC-3, 6.6.3).
fn limits(unit: &Unit) -> Vec<u8> {
    let mut page = vec![0; 60];
    let mut put =
        |at: usize, bytes: &[u8]| page[at - 4..at - 4 + bytes.len()].copy_from_slice(bytes);
    put(5, &[MAX_COMPARE_BLOCKS]);
    let preferred = unit.device.geometry().preferred_block_bytes / BLOCK_BYTES;
    let granularity = preferred.max(1);
    put(6, &u16::try_from(granularity).unwrap_or(u16::MAX).to_be_bytes());
    put(8, &MAX_TRANSFER_BLOCKS.to_be_bytes());
    put(12, &OPTIMAL_BLOCKS.to_be_bytes());
    put(16, &MAX_TRANSFER_BLOCKS.to_be_bytes());
    if unmaps(unit) {
        put(20, &MAX_UNMAP_BLOCKS.to_be_bytes());
        put(24, &MAX_UNMAP_PIECES.to_be_bytes());
    }
    put(28, &granularity.to_be_bytes());
    // The alignment is valid, and 0.
    put(32, &0x8000_0000u32.to_be_bytes());
    put(36, &MAX_SAME_BLOCKS.to_be_bytes());
    page
}

/// Block device characteristics (SBC-3, 6.6.2).
fn characteristics(unit: &Unit) -> Vec<u8> {
    let mut page = vec![0; 60];
    // 1: it does not turn. 0: nothing is said.
    page[1] = if unit.caps.rotational { 0 } else { 1 };
    page
}

/// Logical block provisioning (SBC-3, 6.6.4).
fn provisioning(unit: &Unit) -> Vec<u8> {
    // LBPU, LBPWS, LBPWS10.
    let commands = if unmaps(unit) { 0xe0 } else { 0 };
    let zeroes = if unit.zeroes() { 0x04 } else { 0 };
    // Thin.
    vec![0, commands | zeroes, 0x02, 0]
}
