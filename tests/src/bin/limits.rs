//! The most that this machine's processors can do with a given image, for `cargo xtask bench`.
//!
//! Usage: `limits IMAGE`. A sample of the image's chunks that are not zeros is held in memory and
//! put through the same operations, of the same libraries, that storing and restoring need, on all
//! processors at once, with nothing else around them: no index, no packs. Reading the image and
//! writing beside it are measured apart, to tell what holds a backup or a restore back. Prints one
//! JSON object with rates in MiB of plain data a second.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this program does")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// The repository's default chunk.
const CHUNK_BYTES: usize = 64 << 10;
/// Most data held in memory; chunks are taken evenly from the whole image.
const SAMPLE_BYTES: u64 = 768 << 20;
/// The store's default level.
const ZSTD_LEVEL: i32 = 1;
const TAG_BYTES: usize = 16;
const MIB: f64 = (1_u64 << 20) as f64;

/// A chunk as it would be stored: ciphertext and tag, and whether zstd made it smaller.
struct Stored {
    sealed: Vec<u8>,
    tag: [u8; TAG_BYTES],
    compressed: bool,
    id: blake3::Hash,
}

/// What one thread needs; made once, as the store does.
struct Worker {
    key: LessSafeKey,
    hash_key: [u8; 32],
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    packed: Vec<u8>,
    opened: Vec<u8>,
    plain: Vec<u8>,
}

impl Worker {
    fn new() -> Result<Worker> {
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(|_| anyhow!("no AES key"))?;
        Ok(Worker {
            key: LessSafeKey::new(key),
            hash_key: [9; 32],
            compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL)?,
            decompressor: zstd::bulk::Decompressor::new()?,
            packed: vec![0; zstd::zstd_safe::compress_bound(CHUNK_BYTES)],
            opened: vec![0; zstd::zstd_safe::compress_bound(CHUNK_BYTES)],
            plain: vec![0; CHUNK_BYTES],
        })
    }

    fn nonce(number: usize) -> Nonce {
        let mut bytes = [0; NONCE_LEN];
        bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
        Nonce::assume_unique_for_key(bytes)
    }

    fn hash(&self, chunk: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.hash_key, chunk)
    }

    /// BLAKE3, zstd, AES-GCM. The result stays in `packed`.
    fn encode(
        &mut self,
        number: usize,
        chunk: &[u8],
    ) -> Result<(blake3::Hash, usize, bool, [u8; TAG_BYTES])> {
        let id = self.hash(chunk);
        let len = self.compressor.compress_to_buffer(chunk, self.packed.as_mut_slice())?;
        let compressed = len < chunk.len();
        let len = if compressed {
            len
        } else {
            self.packed[..chunk.len()].copy_from_slice(chunk);
            chunk.len()
        };
        let tag = self
            .key
            .seal_in_place_separate_tag(Self::nonce(number), Aad::empty(), &mut self.packed[..len])
            .map_err(|_| anyhow!("cannot seal"))?;
        Ok((id, len, compressed, tag.as_ref().try_into()?))
    }

    /// AES-GCM, zstd, BLAKE3: an error unless the chunk comes out as it went in.
    fn decode(&mut self, number: usize, stored: &Stored) -> Result<()> {
        let len = stored.sealed.len();
        self.key
            .open_separate_gather(
                Self::nonce(number),
                Aad::empty(),
                &stored.sealed,
                &stored.tag,
                &mut self.opened[..len],
            )
            .map_err(|_| anyhow!("cannot open"))?;
        let id = if stored.compressed {
            let n = self
                .decompressor
                .decompress_to_buffer(&self.opened[..len], self.plain.as_mut_slice())?;
            self.hash(&self.plain[..n])
        } else {
            self.hash(&self.opened[..len])
        };
        ensure!(id == stored.id, "decoded wrongly");
        Ok(())
    }
}

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).context("usage: limits IMAGE")?;
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let file = File::open(&path)?;
    let Sample { chunks, offsets, data_bytes } = sample(&file)?;
    if chunks.is_empty() {
        bail!("the image holds nothing but zeros");
    }
    let store = |worker: &mut Worker, i: usize| -> Result<Stored> {
        let (id, len, compressed, tag) = worker.encode(i, &chunks[i])?;
        Ok(Stored { sealed: worker.packed[..len].to_vec(), tag, compressed, id })
    };
    let (stored, _) = each(threads, chunks.len(), store)?;
    let bytes: usize = chunks.iter().map(Vec::len).sum();
    let rate = |seconds: f64| bytes as f64 / MIB / seconds;
    let (_, hash) = each(threads, chunks.len(), |worker, i| {
        std::hint::black_box(worker.hash(&chunks[i]));
        Ok(())
    })?;
    let (_, read_hash) = each(threads, chunks.len(), |worker, i| {
        let mut chunk = std::mem::take(&mut worker.plain);
        file.read_exact_at(&mut chunk[..chunks[i].len()], offsets[i])?;
        std::hint::black_box(worker.hash(&chunk[..chunks[i].len()]));
        worker.plain = chunk;
        Ok(())
    })?;
    let (_, encode) = each(threads, chunks.len(), |worker, i| {
        std::hint::black_box(worker.encode(i, &chunks[i])?);
        Ok(())
    })?;
    let (_, encode_verified) = each(threads, chunks.len(), |worker, i| {
        std::hint::black_box(worker.encode(i, &chunks[i])?);
        worker.decode(i, &stored[i])
    })?;
    let (_, decode) = each(threads, chunks.len(), |worker, i| worker.decode(i, &stored[i]))?;
    println!(
        "{{\"threads\":{threads},\"data_mib\":{:.3},\"sample_mib\":{:.3},\"encode_mib_s\":{:.1},\
         \"encode_verified_mib_s\":{:.1},\"hash_mib_s\":{:.1},\"read_hash_mib_s\":{:.1},\"decode_mib_s\":{:.1},\
         \"write_mib_s\":{:.1}}}",
        data_bytes as f64 / MIB,
        bytes as f64 / MIB,
        rate(encode),
        rate(encode_verified),
        rate(hash),
        rate(read_hash),
        rate(decode),
        rate(write(Path::new(&path), &chunks)?),
    );
    Ok(())
}

/// Seconds that one thread needs to write the chunks to a new file beside the image.
fn write(image: &Path, chunks: &[Vec<u8>]) -> Result<f64> {
    let path = image.with_extension("limit");
    let file = File::create(&path)?;
    let start = Instant::now();
    let mut at = 0;
    let written = chunks.iter().try_for_each(|chunk| {
        file.write_all_at(chunk, at)?;
        at += chunk.len() as u64;
        Ok::<_, std::io::Error>(())
    });
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    written.map(|()| seconds).context("cannot write beside the image")
}

/// Chunks of an image, where they lie, and the bytes of all its chunks that are not zeros.
struct Sample {
    chunks: Vec<Vec<u8>>,
    offsets: Vec<u64>,
    data_bytes: u64,
}

/// Chunks of the image that are not zeros, at most [`SAMPLE_BYTES`] of them taken evenly.
fn sample(file: &File) -> Result<Sample> {
    let size = file.metadata()?.len();
    let mut data_bytes = 0;
    let mut buffer = vec![0; CHUNK_BYTES];
    // Every second, third, ... chunk, so that the sample fits even if nothing is zeros.
    let keep_every = size.div_ceil(SAMPLE_BYTES).max(1);
    let (mut chunks, mut offsets, mut seen, mut at) = (Vec::new(), Vec::new(), 0_u64, 0);
    while at < size {
        let len = (size - at).min(CHUNK_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..len], at)?;
        if buffer[..len].iter().any(|b| *b != 0) {
            if seen.is_multiple_of(keep_every) {
                chunks.push(buffer[..len].to_vec());
                offsets.push(at);
            }
            seen += 1;
            data_bytes += len as u64;
        }
        at += len as u64;
    }
    Ok(Sample { chunks, offsets, data_bytes })
}

/// Runs `work` for every number below `count` on all threads. Returns the results in order and the
/// seconds from the first thread's start to the last one's end.
fn each<T: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(&mut Worker, usize) -> Result<T> + Sync,
) -> Result<(Vec<T>, f64)> {
    /// Chunks a thread takes at once.
    const BATCH: usize = 16;
    let mut workers = (0..threads).map(|_| Worker::new()).collect::<Result<Vec<_>>>()?;
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let run = |worker: &mut Worker| {
        let mut made = Vec::new();
        loop {
            let from = next.fetch_add(BATCH, Ordering::Relaxed);
            if from >= count {
                return Ok(made);
            }
            for i in from..(from + BATCH).min(count) {
                made.push((i, work(worker, i)?));
            }
        }
    };
    let parts: Vec<Result<Vec<(usize, T)>>> = std::thread::scope(|scope| {
        let handles: Vec<_> =
            workers.iter_mut().map(|worker| scope.spawn(|| run(worker))).collect();
        handles
            .into_iter()
            .map(|h| h.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
            .collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut all = Vec::with_capacity(count);
    for part in parts {
        all.extend(part?);
    }
    all.sort_by_key(|(i, _)| *i);
    Ok((all.into_iter().map(|(_, t)| t).collect(), seconds))
}
