//! That no layer forgets a method: each is called through every layer, and must come out below.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstay_blockdev::layer::{
    Cache, Compare, Delay, Entry, Fault, Limits, Log, Range, Rate, ReadOnly, Sink, Verify,
};
use backstay_blockdev::{
    BlockDevice, Caps, Error, ErrorKind, Extent, ExtentKind, Geometry, Presence, PresenceExtent,
    WriteFlags,
};

/// What a layer may not pass on unchanged.
const SIZE: u64 = 1 << 20;
/// Where the part of [`Range`] starts.
const START: u64 = 8192;

/// Writes down what it is asked, and answers nothing a default would.
#[derive(Debug, Default)]
struct Probe {
    seen: Mutex<Vec<String>>,
    fail: bool,
}

impl Probe {
    fn note<T>(&self, text: String, answer: T) -> Result<T, Error> {
        self.seen.lock().unwrap().push(text);
        match self.fail {
            true => Err(Error::new(ErrorKind::Paused, "as planned")),
            false => Ok(answer),
        }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

const CAPS: Caps = Caps {
    writable: true,
    flush: true,
    trim: true,
    write_zeroes: true,
    fast_zero: true,
    fua: true,
    multi_conn: true,
    rotational: true,
    presence: true,
};

const PRESENCE: Presence = Presence { stored: true, at_hand: true, overlaid: true };

impl BlockDevice for Probe {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: SIZE,
            min_block_bytes: 512,
            preferred_block_bytes: 16384,
            max_request_bytes: 1 << 19,
        }
    }
    fn caps(&self) -> Caps {
        CAPS
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        buf.fill(7);
        self.note(format!("read {offset} {}", buf.len()), ())
    }
    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Result<bool, Error> {
        buf.fill(7);
        self.note(format!("try_read {offset} {}", buf.len()), true)
    }
    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        let answer = vec![Extent { offset_bytes, len_bytes, kind: ExtentKind::Zero }];
        self.note(format!("extents {offset_bytes} {len_bytes} {max}"), answer)
    }
    fn presence(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<PresenceExtent>, Error> {
        let answer = vec![PresenceExtent { offset_bytes, len_bytes, presence: PRESENCE }];
        self.note(format!("presence {offset_bytes} {len_bytes} {max}"), answer)
    }
    fn prefetch(&self, offset: u64, len: u64) {
        let _ = self.note(format!("prefetch {offset} {len}"), ());
    }
    fn write_at(&self, offset: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        self.note(format!("write {offset} {} {flags:?}", data.len()), ())
    }
    fn flush(&self) -> Result<(), Error> {
        self.note("flush".to_owned(), ())
    }
    fn trim(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<(), Error> {
        self.note(format!("trim {offset} {len} {flags:?}"), ())
    }
    fn write_zeroes(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<(), Error> {
        self.note(format!("zeroes {offset} {len} {flags:?}"), ())
    }
}

#[derive(Debug)]
struct Nowhere;

impl Sink for Nowhere {
    fn entry(&self, _: &Entry) {}
}

struct Layered {
    name: &'static str,
    start: u64,
    writable: bool,
    tries: bool,
    top: Arc<dyn BlockDevice>,
    probe: Arc<Probe>,
}

fn layers(fail: bool) -> Vec<Layered> {
    type Make = fn(Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice>;
    let all: [(&'static str, u64, bool, bool, Make); 9] = [
        ("ReadOnly", 0, false, true, |d| Arc::new(ReadOnly::new(d))),
        ("Delay", 0, true, false, |d| Arc::new(Delay::new(d, Duration::ZERO))),
        ("Fault", 0, true, true, |d| Arc::new(Fault::new(d))),
        ("Range", START, true, true, |d| Arc::new(Range::new(d, START, SIZE - START).unwrap())),
        ("Cache", 0, true, true, |d| Arc::new(Cache::new(d, 4096, 1 << 20).unwrap())),
        ("Rate", 0, true, true, |d| Arc::new(Rate::new(d, Limits::default()))),
        ("Log", 0, true, true, |d| Arc::new(Log::new(d, Arc::new(Nowhere)))),
        ("Verify", 0, true, true, |d| Arc::new(Verify::new(d, 64))),
        ("Compare", 0, false, true, |d| {
            Arc::new(Compare::new(d, Arc::new(Probe::default())).unwrap())
        }),
    ];
    all.into_iter()
        .map(|(name, start, writable, tries, make)| {
            let probe = Arc::new(Probe { fail, ..Probe::default() });
            Layered { name, start, writable, tries, top: make(probe.clone()), probe }
        })
        .collect()
}

fn flags() -> Vec<WriteFlags> {
    (0..8u8)
        .map(|bits| WriteFlags {
            fua: bits & 1 != 0,
            no_hole: bits & 2 != 0,
            fast_zero: bits & 4 != 0,
        })
        .collect()
}

#[test]
fn every_layer_passes_everything_on() {
    for Layered { name, start, writable, tries, top, probe } in layers(false) {
        let (at, len) = (16384, 4096);
        let below = at + start;
        let mut buf = vec![0; len as usize];
        // Before read_at, which fills a cache.
        assert_eq!(top.try_read_at(at, &mut buf).unwrap(), tries, "{name}");
        let expected = if tries { vec![format!("try_read {below} {len}")] } else { vec![] };
        assert_eq!(probe.take(), expected, "{name}");
        top.read_at(at, &mut buf).unwrap();
        assert_eq!(probe.take(), [format!("read {below} {len}")], "{name}");
        assert!(buf.iter().all(|b| *b == 7), "{name}");
        let list = top.extents(at, len, 5).unwrap();
        let kind = ExtentKind::Zero;
        assert_eq!(list, [Extent { offset_bytes: at, len_bytes: len, kind }], "{name}");
        assert_eq!(probe.take(), [format!("extents {below} {len} 5")], "{name}");
        let list = top.presence(at, len, 6).unwrap();
        let presence = PRESENCE;
        assert_eq!(list, [PresenceExtent { offset_bytes: at, len_bytes: len, presence }], "{name}");
        assert_eq!(probe.take(), [format!("presence {below} {len} 6")], "{name}");
        top.prefetch(at, len);
        assert_eq!(probe.take(), [format!("prefetch {below} {len}")], "{name}");
        for flags in flags().into_iter().filter(|_| writable) {
            top.write_at(at, &buf, flags).unwrap();
            assert_eq!(probe.take(), [format!("write {below} {len} {flags:?}")], "{name}");
            top.trim(at, len, flags).unwrap();
            assert_eq!(probe.take(), [format!("trim {below} {len} {flags:?}")], "{name}");
            top.write_zeroes(at, len, flags).unwrap();
            assert_eq!(probe.take(), [format!("zeroes {below} {len} {flags:?}")], "{name}");
        }
        top.flush().unwrap();
        let flushed = if writable { vec!["flush".to_owned()] } else { vec![] };
        assert_eq!(probe.take(), flushed, "{name}");
        let mut caps = top.caps();
        assert_eq!(caps.writable, writable, "{name}");
        if !writable {
            let Caps { writable, flush, trim, write_zeroes, fast_zero, fua, .. } = CAPS;
            caps = Caps { writable, flush, trim, write_zeroes, fast_zero, fua, ..caps };
        }
        assert_eq!(caps, CAPS, "{name}");
        let geometry = top.geometry();
        let size_bytes = geometry.size_bytes + start;
        assert_eq!(Geometry { size_bytes, ..geometry }, probe.geometry(), "{name}");
    }
}

#[test]
fn every_layer_passes_errors_on() {
    for Layered { name, writable, top, .. } in layers(true) {
        let mut buf = [0; 4096];
        let none = WriteFlags::default();
        let mut results = vec![
            ("read", top.read_at(4096, &mut buf)),
            ("extents", top.extents(4096, 512, 1).map(drop)),
            ("presence", top.presence(4096, 512, 1).map(drop)),
        ];
        if writable {
            results.push(("write", top.write_at(4096, &buf, none)));
            results.push(("flush", top.flush()));
            results.push(("trim", top.trim(4096, 4096, none)));
            results.push(("zeroes", top.write_zeroes(4096, 4096, none)));
        }
        for (call, result) in results {
            let kind = result.expect_err(name).kind();
            assert_eq!(kind, ErrorKind::Paused, "{name} {call}");
        }
    }
}
