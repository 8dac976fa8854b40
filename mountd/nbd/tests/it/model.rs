//! Random operations on an overlay, through a client with several connections, against a model.

use std::sync::Arc;

use backstay_blockdev::model::{self, Config, Reopens, Subject};
use backstay_blockdev::overlay::{Overlay, OverlayOptions, RealDirectory};
use backstay_blockdev::{BlockDevice, Error, MemDevice};
use backstay_nbd::client::{Client, NbdUri};

use crate::support::{Server, disk};

/// Whole sectors: a client may ask for nothing else.
const SIZE: usize = 200 * 1024;

/// The seed of this run, printed so that a failure can be repeated.
#[allow(clippy::print_stdout, reason = "so that a run can be repeated")]
fn seed() -> u64 {
    let given = std::env::var("BACKSTAY_SEED").ok().and_then(|s| s.parse().ok());
    let time = std::time::UNIX_EPOCH.elapsed().map_or(1, |d| u64::from(d.subsec_nanos()));
    let seed = given.unwrap_or(time);
    println!("seed {seed} (repeat with BACKSTAY_SEED={seed})");
    seed
}

struct Through {
    uri: NbdUri,
    connections: usize,
}

impl Subject for Through {
    fn open(&self) -> Result<Arc<dyn BlockDevice>, Error> {
        let client = Client { connections: self.connections, ..Client::default() };
        Ok(Arc::new(client.attach(&self.uri).expect("the server lets us in")))
    }

    fn content(&self) -> Option<Vec<u8>> {
        Some(disk(SIZE))
    }

    fn reopens(&self) -> Reopens {
        Reopens::Clean
    }
}

fn config() -> Config {
    let release = std::env::var_os("BACKSTAY_RELEASE_SIZE").is_some();
    Config {
        seed: seed(),
        operations: if release { 1_000_000 } else { 20_000 },
        ..Config::default()
    }
}

#[test]
fn an_overlay_over_four_connections() {
    let dir = tempfile::tempdir().unwrap();
    let base = Arc::new(MemDevice::new(disk(SIZE)));
    let overlay = Overlay::create(
        Arc::new(RealDirectory::new(dir.path().to_owned())),
        base.clone(),
        [7; 32],
        7,
        OverlayOptions::default(),
    );
    let server = Server::start(overlay.unwrap());
    let through = Through { uri: server.uri("disk"), connections: 4 };
    model::run(&through, config()).unwrap_or_else(|failure| panic!("{failure}"));
    assert!(base.to_vec() == disk(SIZE), "the base has changed");
}
