//! Mistakes that tests can plant, to see that other tests notice them. Without the feature
//! `testkit` none of this is in the program.

/// One decision of the store made wrongly. Each names the rule (FORMAT.md, LOCKS.md) it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(not(feature = "testkit"), allow(unreachable_pub, reason = "the feature exports it"))]
pub enum Fault {
    /// A collection does not wait for writers that registered before its plan (G2).
    NoWaitForWriters,
    /// What must stay is listed once, at the beginning, and nobody is waited for: the collector
    /// of Proxmox Backup Server before PSA-2025-00019-1 (G2).
    ProxmoxCollector,
    /// What must stay is read before the older writers are over, not after it (G2).
    RootsBeforeWriters,
    /// What the plan condemned is deleted without marking again (G2).
    NoSecondMark,
    /// Points are listed before sessions (G1, G2).
    PointsBeforeSessions,
    /// Removals are listed after pins and sessions (G1, G2).
    RemovalsAfterSessions,
    /// Pins keep nothing (G2).
    PinsIgnored,
    /// What readers hold counts for nothing (G2).
    HoldsIgnored,
    /// A hold ends when the clock says that it is a day old (rule: no clock is evidence).
    HoldsEndByClock,
    /// Removed points are buried although somebody holds them.
    HeldPointsBuried,
    /// A removal is deleted before its point.
    RemovalDeletedFirst,
    /// A writer does not hold its base (W2).
    BaseNotHeld,
    /// A writer takes a base that was removed (W1).
    RemovedBaseUsed,
    /// A base is trusted although packs of the repository have vanished.
    VanishedBaseTrusted,
    /// Writers find chunks in condemned packs (W1).
    CondemnedPacksUsed,
    /// A writer does not look again for a newer collection after it registered (W1).
    RegisteredOnce,
    /// Packs are listed before the registration, and not after it (W1).
    PacksListedTooEarly,
    /// Packs that are gone stay in the index.
    VanishedPacksKept,
    /// A commit takes whatever stands in its place for its own (W3).
    FenceIgnored,
    /// A commit does not ask whether a collection ended without it (W3).
    OvertakenIgnored,
    /// The session is taken away before the point is there (W3).
    SessionEndsFirst,
    /// The point is written before the packs (O2).
    PointBeforePacks,
    /// A pack that could not be stored counts as stored (O2).
    FailedPackIgnored,
    /// Sessions that look old by the clock are forgotten, not fenced: stale locks.
    OldSessionsForgotten,
    /// A collection is planned while the one before it goes on (G1).
    PlansBesideAnother,
    /// A second collector goes by its own judgement instead of the first verdict (G3).
    SecondJudge,
    /// A verdict is heeded although its collection was over long ago (G2).
    StaleVerdictHeeded,
    /// The end of a collection is written before its packs are deleted (G3).
    EndBeforeDeletes,
    /// The index alone decides: footers are not compared (G2).
    FootersNotCompared,
    /// A point that cannot be read is left out, and the collection goes on.
    DamagedPointSkipped,
    /// Records of damage change nothing: bad copies count as present.
    QuarantineIgnored,
    /// A pack is deleted although a chunk that is needed may only be in there, in quarantine.
    BadPackDeleted,
    /// What lies in quarantine and can be read counts as a chunk that is stored for good.
    QuarantinedTakenForWhole,
    /// A repair stores what a source offers, whatever its id.
    SourcesTrusted,
    /// A hold that came too late, on a point whose packs are gone, stops all collections.
    LateHoldTakenForDamage,
    /// Nodes of a held, removed point are gone when the index says so (H1).
    GoneByIndexAlone,
    /// A point that a collector remembers is followed although it was buried meanwhile.
    GonePointsFollowed,
    /// A tree node that cannot be read is left out, and the collection goes on.
    DamagedNodeSkipped,
    /// A chunk that stands twice in a pack counts as not being there.
    TwinsCountAsNone,
    /// The compressor spoils chunks, and nobody decodes before the backup is acknowledged (O1).
    DecodeNotChecked,
    /// A chunk that is in no pack reads as zeros (O8).
    ZerosForMissing,
    /// The id of a chunk that was read is not compared (O8).
    IdNotCompared,
    /// A pack that ends too early is read as far as it goes.
    ShortReadAccepted,
    /// A name in a directory is not made durable (O4).
    DirectoryNotSynced,
    /// A file's bytes are not made durable (O1).
    FileNotSynced,
    /// A file gets its name before its bytes are durable (O1).
    RenamedBeforeSync,
    /// A sync that failed is tried again, and believed (O6).
    SyncTriedAgain,
    /// An object that exists is replaced (O4).
    PutReplaces,
    /// Removed points are listed.
    RemovalsNotAsked,
    /// A hold does not ask whether the point is removed (H1).
    HoldTakenBlindly,
    /// A pin does not ask whether the point is removed (H1).
    PinSetBlindly,
    /// No mistake: the compressor spoils chunks, which the writer must notice (O1).
    CodecSpoils,
    /// No mistake: a writer stores each chunk twice, which readers and collectors must bear.
    StoresTwice,
}

#[cfg(feature = "testkit")]
impl Fault {
    /// The mistakes, each of which some test must notice.
    pub const MISTAKES: &[Fault] = &[
        Fault::NoWaitForWriters,
        Fault::ProxmoxCollector,
        Fault::RootsBeforeWriters,
        Fault::NoSecondMark,
        Fault::PointsBeforeSessions,
        Fault::RemovalsAfterSessions,
        Fault::PinsIgnored,
        Fault::HoldsIgnored,
        Fault::HoldsEndByClock,
        Fault::HeldPointsBuried,
        Fault::RemovalDeletedFirst,
        Fault::BaseNotHeld,
        Fault::RemovedBaseUsed,
        Fault::VanishedBaseTrusted,
        Fault::CondemnedPacksUsed,
        Fault::RegisteredOnce,
        Fault::PacksListedTooEarly,
        Fault::VanishedPacksKept,
        Fault::FenceIgnored,
        Fault::OvertakenIgnored,
        Fault::SessionEndsFirst,
        Fault::PointBeforePacks,
        Fault::FailedPackIgnored,
        Fault::OldSessionsForgotten,
        Fault::PlansBesideAnother,
        Fault::SecondJudge,
        Fault::StaleVerdictHeeded,
        Fault::EndBeforeDeletes,
        Fault::FootersNotCompared,
        Fault::DamagedPointSkipped,
        Fault::GoneByIndexAlone,
        Fault::GonePointsFollowed,
        Fault::DamagedNodeSkipped,
        Fault::QuarantineIgnored,
        Fault::BadPackDeleted,
        Fault::QuarantinedTakenForWhole,
        Fault::SourcesTrusted,
        Fault::LateHoldTakenForDamage,
        Fault::TwinsCountAsNone,
        Fault::DecodeNotChecked,
        Fault::ZerosForMissing,
        Fault::IdNotCompared,
        Fault::ShortReadAccepted,
        Fault::DirectoryNotSynced,
        Fault::FileNotSynced,
        Fault::RenamedBeforeSync,
        Fault::SyncTriedAgain,
        Fault::PutReplaces,
        Fault::RemovalsNotAsked,
        Fault::HoldTakenBlindly,
        Fault::PinSetBlindly,
    ];
}

/// The fault of this process plus one; zero for none.
#[cfg(feature = "testkit")]
static PLANTED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// Plants a fault in this whole process, or takes it away. For processes started for it: other
/// tests beside it would meet the fault, too.
#[cfg(feature = "testkit")]
pub fn plant(fault: Option<Fault>) {
    let number = fault.map_or(0, |f| f as u32 + 1);
    PLANTED.store(number, std::sync::atomic::Ordering::SeqCst);
}

/// Whether this mistake is to be made.
#[cfg(feature = "testkit")]
pub(crate) fn planted(fault: Fault) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == fault as u32 + 1
}

#[cfg(not(feature = "testkit"))]
pub(crate) const fn planted(_: Fault) -> bool {
    false
}
