//! Serves an image file over NBD until standard input ends:
//! `cargo run --release -p backstay-nbd --example serve -- FILE 127.0.0.1:10809`

#![allow(clippy::print_stdout, reason = "an example shows where it listens")]

use std::error::Error;
use std::io::Read;
use std::sync::Arc;

use backstay_blockdev::{BlockDevice, FileDevice};
use backstay_nbd::server::{ExportInfo, Exports, Listen, OpenError, ServerConfig, ServerHandle};

struct OneFile(Arc<dyn BlockDevice>);

impl Exports for OneFile {
    fn list(&self) -> Vec<ExportInfo> {
        vec![ExportInfo { name: "disk".to_owned(), description: "an image file".to_owned() }]
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, OpenError> {
        match name {
            "" | "disk" => Ok(self.0.clone()),
            _ => Err(OpenError::Unknown),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(file), Some(address)) = (args.next(), args.next()) else {
        return Err("usage: serve FILE ADDRESS:PORT".into());
    };
    let device = Arc::new(FileDevice::open(file, true)?);
    let listen = vec![Listen::Tcp(address.parse()?)];
    let server = ServerHandle::start(listen, Arc::new(OneFile(device)), ServerConfig::default())?;
    println!("{}", server.addresses()[0].uri("disk"));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.stop()?;
    Ok(())
}
