//! Serves an image file over NBD until standard input ends:
//! `cargo run --release -p backstay-nbd --example serve -- FILE 127.0.0.1:10809`

#![allow(clippy::print_stdout, reason = "an example shows where it listens")]

use std::error::Error;
use std::io::Read;
use std::sync::Arc;

use backstay_blockdev::FileDevice;
use backstay_nbd::server::{
    Access, ExportSpec, ExportTable, Listen, Permission, ServerConfig, ServerHandle, Source,
    export_uri,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(file), Some(address)) = (args.next(), args.next()) else {
        return Err("usage: serve FILE ADDRESS:PORT".into());
    };
    let table = ExportTable::new();
    table.add(ExportSpec {
        name: "disk".to_owned(),
        description: "an image file".to_owned(),
        source: Source::Device(Arc::new(FileDevice::open(file, true)?)),
        access: Access::everybody(Permission::ReadOnly),
    })?;
    table.set_default(Some("disk"));
    let listen = vec![Listen::Tcp(address.parse()?)];
    let server = ServerHandle::start(listen, Arc::new(table), ServerConfig::default())?;
    println!("{}", export_uri(&server.addresses()[0], "disk", false));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.stop()?;
    Ok(())
}
