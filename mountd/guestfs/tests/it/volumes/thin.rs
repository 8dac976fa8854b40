//! Thin pools whose metadata `thin_restore` wrote, in groups that LVM took back.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use backstay_blockdev::BlockDevice as _;
use backstay_guestfs::volumes::{Piece, PieceAt, scan};

use super::group::{Group, no_lvm};
use super::hold::{MIB, disks, names, scanned};
use crate::support::image::{Image, run, skipped};
use crate::support::{Random, seed};

/// The chunks of all pools here.
const CHUNK: u64 = 64 << 10;

/// Blocks of a thin volume, and where in the pool they are.
type Blocks = BTreeMap<u64, u64>;

/// A pool in a group of one disk of 4 GiB.
struct Pool {
    group: Group,
    meta: u64,
    data: u64,
}

impl Pool {
    /// Volumes by id, each of 2 GiB but the first, which has an origin outside the pool of 2 MiB.
    fn new(volumes: &[&Blocks]) -> Self {
        let mut group = Group::sized("vg0", 1, 4096 * MIB);
        let meta = group.sub("pool_tmeta", 0, 8);
        let data = group.sub("pool_tdata", 0, 2048);
        let origin = group.sub("base", 0, 2);
        group.put(0, origin, &Random(99).bytes(2 << 20));
        group.volume(
            "pool",
            true,
            "start_extent=0\nextent_count=2048\ntype=\"thin-pool\"\nmetadata=\"pool_tmeta\"\npool=\"pool_tdata\"\n\
                transaction_id=3\nchunk_size=128\ndiscards=\"passdown\"\nzero_new_blocks=1",
        );
        for id in 1..=volumes.len() {
            let external = if id == 1 { "\nexternal_origin=\"base\"" } else { "" };
            group.volume(
                &format!("thin{id}"),
                true,
                &format!(
                    "start_extent=0\nextent_count=2048\ntype=\"thin\"\nthin_pool=\"pool\"\ntransaction_id=0\ndevice_id={id}{external}"
                ),
            );
        }
        group.restore();
        let pool = Self { group, meta, data };
        pool.restore(volumes);
        pool
    }

    /// Writes the pool's metadata by the real tool.
    fn restore(&self, volumes: &[&Blocks]) {
        let mut xml = format!(
            "<superblock uuid=\"\" time=\"1\" transaction=\"3\" data_block_size=\"128\" nr_data_blocks=\"{}\">\n",
            2048 * MIB / CHUNK
        );
        for (id, blocks) in (1..).zip(volumes) {
            let count = blocks.len();
            let _ = writeln!(
                xml,
                "<device dev_id=\"{id}\" mapped_blocks=\"{count}\" transaction=\"0\" creation_time=\"0\" snap_time=\"1\">"
            );
            for (block, at) in *blocks {
                let _ = writeln!(
                    xml,
                    "<single_mapping origin_block=\"{block}\" data_block=\"{at}\" time=\"1\"/>"
                );
            }
            xml += "</device>\n";
        }
        xml += "</superblock>\n";
        let file = Image::new(8 * MIB);
        let text = file.dir().join("pool.xml");
        std::fs::write(&text, xml).expect("the text");
        let (text, to) = (text.to_str().expect("plain"), file.path().to_str().expect("plain"));
        run("thin_restore", &["-i", text, "-o", to]);
        run("thin_check", &[to]);
        self.group.put(0, self.meta, &std::fs::read(to).expect("the metadata"));
    }

    fn put(&self, block: u64, bytes: &[u8]) {
        self.group.put(0, self.data + block * CHUNK, bytes);
    }
}

fn no_tools(test: &str) -> bool {
    no_lvm(test) || skipped(test, &["thin_restore", "thin_check"])
}

/// So many blocks of a volume of 2 GiB, some in runs, each at another place of the pool.
fn scattered(count: u64, random: &mut Random) -> Blocks {
    let all = 2048 * MIB / CHUNK;
    let mut blocks = Blocks::new();
    let mut at = random.below(all);
    while (blocks.len() as u64) < count {
        let start = random.below(all);
        for next in start..(start + 1 + random.below(20)).min(all) {
            blocks.entry(next).or_insert_with(|| {
                at = (at + 1) % all;
                at
            });
        }
    }
    blocks
}

#[test]
fn every_block_is_where_the_pool_says() {
    if no_tools("every_block_is_where_the_pool_says") {
        return;
    }
    let mut random = Random(seed());
    // 12,000 mappings make a tree with inner nodes.
    let (few, many) = (Blocks::from([(0, 7), (1, 8), (31, 9)]), scattered(12_000, &mut random));
    let pool = Pool::new(&[&few, &many]);
    let disks = disks(&pool.group.images());
    let tree = scan(&disks).expect("scanned");
    let device = tree.find("vg0/thin2").expect("there").devices()[0].clone();
    assert_eq!(device.size_bytes(), 2048 * MIB);
    for block in 0..2048 * MIB / CHUNK {
        let pieces = device.locate(block * CHUNK, CHUNK, 2).expect("located");
        let at = many.get(&block).map_or(PieceAt::Zeros, |at| PieceAt::Disk {
            disk: 0,
            offset_bytes: pool.data + at * CHUNK,
        });
        assert_eq!(pieces, [Piece { len_bytes: CHUNK, at }], "block {block}");
    }
    // All of it at once: as many pieces as there are runs.
    let (mut at, mut len, mut pieces) = (0, 0, 0_u64);
    while at < device.size_bytes() {
        for piece in device.locate(at, device.size_bytes() - at, 1000).expect("located") {
            (at, pieces) = (at + piece.len_bytes, pieces + 1);
            len += if piece.at == PieceAt::Zeros { 0 } else { piece.len_bytes };
        }
    }
    assert_eq!(len, many.len() as u64 * CHUNK);
    assert!(pieces < many.len() as u64, "{pieces} pieces of {} blocks", many.len());
    assert!(names(&tree).contains("vg0/pool (thin pool"), "{}", names(&tree));
}

#[test]
fn blocks_zeros_and_the_origin_outside() {
    if no_tools("blocks_zeros_and_the_origin_outside") {
        return;
    }
    let blocks = Blocks::from([(0, 7), (1, 8), (31, 9), (500, 0)]);
    let pool = Pool::new(&[&blocks, &Blocks::new()]);
    let mut wanted = vec![0; 64 << 20];
    wanted[..2 << 20].copy_from_slice(&Random(99).bytes(2 << 20));
    for (block, at) in &blocks {
        let bytes = Random(*block).bytes(CHUNK as usize);
        pool.put(*at, &bytes);
        wanted[(block * CHUNK) as usize..][..CHUNK as usize].copy_from_slice(&bytes);
    }
    let tree = scanned(&pool.group.images());
    let device = tree.find("vg0/thin1").expect("there").devices()[0].clone();
    let mut ours = vec![1; wanted.len()];
    device.read_at(0, &mut ours).expect("read");
    assert!(ours == wanted, "{}", names(&tree));
    let empty = tree.find("vg0/thin2").expect("there").devices()[0].clone();
    let pieces = empty.locate(0, empty.size_bytes(), 10).expect("located");
    assert_eq!(pieces, [Piece { len_bytes: 2048 * MIB, at: PieceAt::Zeros }]);
}

#[test]
fn damage_of_a_pool_is_never_a_wrong_block() {
    if no_tools("damage_of_a_pool_is_never_a_wrong_block") {
        return;
    }
    let mut random = Random(seed());
    let blocks = scattered(3000, &mut random);
    let pool = Pool::new(&[&Blocks::new(), &blocks]);
    let disks = disks(&pool.group.images());
    let all = |name: &str| {
        let tree = scan(&disks).expect("scanned");
        let volume = tree.find(name).expect("there").clone();
        let Some(device) = volume.devices().first().cloned() else {
            assert!(volume.error.is_some());
            return None;
        };
        let (mut at, mut list) = (0, Vec::new());
        while at < device.size_bytes() {
            let pieces = device.locate(at, device.size_bytes() - at, 1000).ok()?;
            at += pieces.iter().map(|piece| piece.len_bytes).sum::<u64>();
            list.extend(pieces);
        }
        Some(list)
    };
    let good = all("vg0/thin2").expect("it is good");
    let mut bytes = vec![0; 8 << 20];
    disks[0].device.read_at(pool.meta, &mut bytes).expect("read");
    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let mut found = 0;
    let others: Vec<usize> =
        (0..300).map(|_| used[random.below(used.len() as u64) as usize]).collect();
    for at in (0..400).chain(others) {
        pool.group.put(0, pool.meta + at as u64, &[bytes[at] ^ 1 << random.below(8)]);
        match all("vg0/thin2") {
            Some(list) => assert!(list == good, "byte {at} of the metadata"),
            None => found += 1,
        }
        pool.group.put(0, pool.meta + at as u64, &[bytes[at]]);
    }
    assert!(found > 400, "{found} of 700 were seen: space maps are the others");
    // A node that is its own child, with a good checksum.
    let superblock = &bytes[..4096];
    let root = u64::from_le_bytes(superblock[320..328].try_into().expect("8 bytes"));
    let at = root as usize * 4096;
    let mut node = bytes[at..at + 4096].to_vec();
    node[4..8].copy_from_slice(&1_u32.to_le_bytes());
    let max = u32::from_le_bytes(node[20..24].try_into().expect("4 bytes")) as usize;
    for value in 0..2 {
        node[32 + 8 * (max + value)..][..8].copy_from_slice(&root.to_le_bytes());
    }
    let sum =
        !(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &node[4..]) as u32) ^ 121_107;
    node[..4].copy_from_slice(&sum.to_le_bytes());
    pool.group.put(0, pool.meta + at as u64, &node);
    let tree = scan(&disks).expect("scanned");
    let error = tree.find("vg0/thin2").and_then(|v| v.error.clone()).expect("an error");
    assert!(error.contains("deeper"), "{error}");
}
