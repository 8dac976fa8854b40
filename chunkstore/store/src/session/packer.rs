use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::thread::JoinHandle;

use backstay_format::limits::CHUNK_STORED_MAX;
use backstay_format::pack::{PackEntry, PackKind};
use backstay_format::{ChunkId, PackId, PointId};
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex};

use crate::entropy::array;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{ChunkLocation, PackInfo, PackSet};
use crate::key::ObjectKey;
use crate::pack::{ClosedPack, OpenPack, Reservation};
use crate::parity;
use crate::planted::{Fault, planted};
use crate::repository::Inner;
use crate::seal::{Decoder, Encoder, seal};

/// Finished packs waiting for a writer. There are as many writers as suit the storage: with two,
/// one can write while another waits for its sync, and with the pack being filled a session holds
/// at most four packs of 32 MiB in memory.
const QUEUE: usize = 1;

/// Fills packs and hands them to writer threads.
#[derive(Debug)]
pub(crate) struct Packer {
    repo: Arc<Inner>,
    /// The session, named in every pack.
    session: PointId,
    /// Packs that a collection wants to delete: what they hold counts as absent.
    condemned: Arc<PackSet>,
    /// Whether the packs may use the reserve of a full disk.
    vital: bool,
    state: Mutex<State>,
    idle: Condvar,
    queue: Mutex<Option<Sender<Box<ClosedPack>>>>,
    writers: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct State {
    /// The pack being filled, one a kind; in order, so that a seed names one run.
    open: BTreeMap<PackKind, OpenPack>,
    /// Full packs that wait for reserved bytes still being sealed.
    closing: HashMap<PackId, OpenPack>,
    /// Chunks of this session that are not in the index yet.
    unindexed: HashSet<ChunkId>,
    /// Packs handed to the writers and not durable yet.
    in_flight: usize,
    failed: Option<(ErrorKind, String)>,
    stats: SessionStats,
}

/// What a session stored.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SessionStats {
    pub(crate) new_chunks: u64,
    pub(crate) new_bytes: u64,
    pub(crate) stored_bytes: u64,
}

/// A chunk to store, if the store lacks it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) id: ChunkId,
    pub(crate) raw: &'a [u8],
}

/// Compressor and decompressor of one writing thread.
#[derive(Debug)]
pub(crate) struct Codec {
    encoder: Encoder,
    decoder: Decoder,
    check: Vec<u8>,
}

impl Codec {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { encoder: Encoder::new()?, decoder: Decoder::new()?, check: Vec::new() })
    }

    /// Decodes a stored chunk into `raw`, which has its length.
    pub(crate) fn decode(
        &mut self,
        key: Option<&aws_lc_rs::aead::LessSafeKey>,
        kind: PackKind,
        entry: &PackEntry,
        stored: &[u8],
        raw: &mut [u8],
    ) -> Result<()> {
        self.decoder.decode(key, kind, entry, stored, raw)
    }
}

impl Packer {
    pub(crate) fn start(
        repo: Arc<Inner>,
        session: PointId,
        condemned: Arc<PackSet>,
    ) -> Result<Arc<Self>> {
        Self::launch(repo, session, condemned, false)
    }

    /// The same for collecting and repairing, which must work on a full disk: the packs may use its
    /// reserve.
    pub(crate) fn start_vital(
        repo: Arc<Inner>,
        session: PointId,
        condemned: Arc<PackSet>,
    ) -> Result<Arc<Self>> {
        Self::launch(repo, session, condemned, true)
    }

    fn launch(
        repo: Arc<Inner>,
        session: PointId,
        condemned: Arc<PackSet>,
        vital: bool,
    ) -> Result<Arc<Self>> {
        let (sender, receiver) = bounded(QUEUE);
        let distant = repo.storage().advice().writes.max(1);
        let writers = if repo.background() { distant } else { 0 };
        let packer = Arc::new(Self {
            repo,
            session,
            condemned,
            vital,
            state: Mutex::default(),
            idle: Condvar::new(),
            queue: Mutex::new(Some(sender)),
            writers: Mutex::default(),
        });
        for n in 0..writers {
            let (weak, receiver) = (Arc::downgrade(&packer), receiver.clone());
            let thread = std::thread::Builder::new()
                .name(format!("pack-writer-{n}"))
                .spawn(move || write_packs(&weak, &receiver))
                .map_err(|e| Error::io("cannot start a writer thread", e))?;
            packer.writers.lock().push(thread);
        }
        Ok(packer)
    }

    pub(crate) fn repo(&self) -> &Arc<Inner> {
        &self.repo
    }

    pub(crate) fn stats(&self) -> SessionStats {
        self.state.lock().stats
    }

    /// Where each chunk is that the session may refer to.
    pub(crate) fn lookup(
        &self,
        ids: &[ChunkId],
        found: &mut Vec<Option<ChunkLocation>>,
    ) -> Result<()> {
        if planted(Fault::CondemnedPacksUsed) {
            return self.repo.index()?.get_many(ids, &PackSet::new(), found);
        }
        self.repo.index()?.get_many(ids, &self.condemned, found)
    }

    /// Stores those of `chunks` that are new in this session. The caller has looked them up in the
    /// index already. Returns how many were stored.
    pub(crate) fn store(
        &self,
        kind: PackKind,
        chunks: &mut Vec<Candidate<'_>>,
        codec: &mut Codec,
    ) -> Result<usize> {
        {
            let mut state = self.state.lock();
            state.check()?;
            // Two threads that meet the same new chunk: one stores it.
            chunks.retain(|c| state.unindexed.insert(c.id));
        }
        let fresh = chunks.len();
        if fresh == 0 {
            return Ok(0);
        }
        if planted(Fault::StoresTwice) || planted(Fault::TwinsCountAsNone) {
            chunks.extend(chunks.clone());
        }
        let stored = self.store_new(kind, chunks, codec);
        if let Err(e) = &stored {
            self.fail(e);
        }
        stored.map(|()| fresh)
    }

    fn store_new(&self, kind: PackKind, chunks: &[Candidate<'_>], codec: &mut Codec) -> Result<()> {
        let sealed = self.repo.keys().sealed();
        let mut bytes = Vec::with_capacity(chunks.iter().map(|c| c.raw.len() + 16).sum());
        let mut entries = Vec::with_capacity(chunks.len());
        for c in chunks {
            let start = bytes.len();
            let encoding = codec.encoder.encode(c.raw, sealed, &mut bytes);
            if planted(Fault::CodecSpoils) || planted(Fault::DecodeNotChecked) {
                bytes[start] ^= 0x40;
            }
            entries.push(PackEntry {
                id: c.id,
                offset: start as u32,
                stored_len: (bytes.len() - start) as u32,
                raw_len: c.raw.len() as u32,
                encoding,
            });
        }
        let place = {
            let mut state = self.state.lock();
            state.check()?;
            state.open_pack(kind, self.session, &self.repo).reserve(bytes.len() as u32)
        };
        for (entry, c) in entries.iter_mut().zip(chunks) {
            let start = entry.offset as usize;
            let stored = &mut bytes[start..start + entry.stored_len as usize];
            entry.offset += place.offset;
            if let Some(key) = &place.key {
                seal(key, kind, entry, stored);
            }
            if !planted(Fault::DecodeNotChecked) {
                self.check_decodes(kind, place.key.as_deref(), entry, stored, c.raw, codec)?;
            }
        }
        self.hand_in(kind, &place, bytes, &entries)
    }

    /// O1: what will be stored is decoded once more and compared before it counts as stored.
    fn check_decodes(
        &self,
        kind: PackKind,
        key: Option<&aws_lc_rs::aead::LessSafeKey>,
        entry: &PackEntry,
        stored: &[u8],
        raw: &[u8],
        codec: &mut Codec,
    ) -> Result<()> {
        codec.check.resize(raw.len().max(codec.check.len()), 0);
        let check = &mut codec.check[..raw.len()];
        codec
            .decoder
            .decode(key, kind, entry, stored, check)
            .and_then(|()| {
                if check == raw {
                    return Ok(());
                }
                Err(Error::new(ErrorKind::Damaged, "it decodes to other bytes"))
            })
            .map_err(|e| {
                e.context(format!(
                    "chunk {} cannot be read back before it is stored: this machine's memory or \
                 processor may be faulty",
                    entry.id
                ))
            })
    }

    fn hand_in(
        &self,
        kind: PackKind,
        place: &Reservation,
        bytes: Vec<u8>,
        entries: &[PackEntry],
    ) -> Result<()> {
        let ready = {
            let mut state = self.state.lock();
            state.check()?;
            state.stats.new_chunks += entries.len() as u64;
            state.stats.new_bytes += entries.iter().map(|e| u64::from(e.raw_len)).sum::<u64>();
            state.fill(kind, place, bytes, entries)
        };
        ready.map_or(Ok(()), |pack| self.enqueue(pack))
    }

    /// Gives a finished pack to the writers; waits while their queue is full.
    fn enqueue(&self, pack: OpenPack) -> Result<()> {
        self.state.lock().in_flight += 1;
        if !self.repo.background() {
            self.write_one(&pack.close());
            return self.state.lock().check();
        }
        let sender = self.queue.lock().clone();
        let sent = sender.is_some_and(|s| s.send(Box::new(pack.close())).is_ok());
        if !sent {
            self.state.lock().in_flight -= 1;
            return Err(Error::new(ErrorKind::Aborted, "the session has ended"));
        }
        Ok(())
    }

    /// Stores every open pack and waits until all are durable. Nothing may be stored meanwhile.
    /// Returns the bytes stored by the session.
    pub(crate) fn barrier(&self) -> Result<u64> {
        let packs: Vec<OpenPack> = {
            let mut state = self.state.lock();
            state.check()?;
            assert!(state.closing.is_empty(), "no chunk is being stored during a barrier");
            std::mem::take(&mut state.open).into_values().collect()
        };
        for pack in packs {
            self.enqueue(pack)?;
        }
        let mut state = self.state.lock();
        while state.in_flight > 0 && state.failed.is_none() {
            self.idle.wait(&mut state);
        }
        state.check()?;
        Ok(state.stats.stored_bytes)
    }

    fn write_one(&self, pack: &ClosedPack) {
        let result = self.put_pack(pack);
        let mut state = self.state.lock();
        state.in_flight -= 1;
        match result {
            Ok(()) => {
                state.stats.stored_bytes += pack.len();
                for e in &pack.entries {
                    state.unindexed.remove(&e.id);
                }
            }
            Err(_) if planted(Fault::FailedPackIgnored) => {}
            Err(e) => state.set_failed(&e),
        }
        self.idle.notify_all();
    }

    fn put_pack(&self, pack: &ClosedPack) -> Result<()> {
        self.state.lock().check()?;
        let id = pack.header.pack_id;
        let (storage, key) = (self.repo.storage(), ObjectKey::Pack(id));
        if self.vital {
            storage.put_vital(key, &pack.slices())?;
        } else {
            storage.put(key, &pack.slices())?;
        }
        // O5: only now, when the pack is durable, may the index learn of it.
        let info = PackInfo::new(&pack.header, pack.entries.len(), pack.len());
        self.repo.index()?.add_pack(id, info, &pack.entries)?;
        self.repo.index_exchange().pack_written(&pack.table());
        if self.repo.config().has_parity()
            && let Err(error) = parity::write(&self.repo, id, &pack.slices())
        {
            // The pack is durable all the same.
            tracing::warn!(pack = %id, %error, "a pack has no parity; `backstay repo parity` adds it");
        }
        Ok(())
    }

    fn fail(&self, e: &Error) {
        self.state.lock().set_failed(e);
        self.idle.notify_all();
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        // Closing the queue ends the writers. One of them may be the thread that drops us.
        *self.queue.lock() = None;
        let me = std::thread::current().id();
        for writer in self.writers.lock().drain(..).filter(|w| w.thread().id() != me) {
            let _ = writer.join();
        }
    }
}

fn write_packs(packer: &std::sync::Weak<Packer>, queue: &Receiver<Box<ClosedPack>>) {
    while let Ok(pack) = queue.recv() {
        match packer.upgrade() {
            Some(packer) => packer.write_one(&pack),
            None => return,
        }
    }
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some((kind, text)) => Err(Error::new(*kind, text.clone())),
        }
    }

    fn set_failed(&mut self, e: &Error) {
        if self.failed.is_none() {
            self.failed = Some((e.kind(), e.whole_story()));
        }
    }

    fn open_pack(&mut self, kind: PackKind, session: PointId, repo: &Inner) -> &mut OpenPack {
        self.open.entry(kind).or_insert_with(|| {
            let id = PackId::from_bytes(array(repo.entropy()));
            OpenPack::new(repo.config().id, id, kind, session, repo.keys())
        })
    }

    /// Hands bytes in; returns the pack if it is finished with them.
    fn fill(
        &mut self,
        kind: PackKind,
        place: &Reservation,
        bytes: Vec<u8>,
        entries: &[PackEntry],
    ) -> Option<OpenPack> {
        let id = place.pack;
        if let Some(pack) = self.closing.get_mut(&id) {
            pack.fill(place, bytes, entries);
            return if pack.is_complete() { self.closing.remove(&id) } else { None };
        }
        let pack = self.open.get_mut(&kind).filter(|p| p.id() == id)?;
        pack.fill(place, bytes, entries);
        if !pack.is_full() {
            return None;
        }
        let pack = self.open.remove(&kind)?;
        if pack.is_complete() {
            return Some(pack);
        }
        self.closing.insert(id, pack);
        None
    }
}

// A run of chunks handed in at once must fit a pack's 32-bit offsets with the pack before it.
const _: () = assert!((CHUNK_STORED_MAX as u64) * 16 < u32::MAX as u64 / 4);
