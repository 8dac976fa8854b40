//! Serves files as the units of one iSCSI target, until standard input ends:
//!
//! `cargo run -p backstay-iscsi --example serve -- ADDRESS:PORT [--read-only] FILE...`

#![allow(clippy::print_stdout, reason = "an example shows where it listens")]

use std::error::Error;

use std::io::Read;
use std::sync::Arc;

use backstay_blockdev::{BlockDevice, FileDevice};
use backstay_iscsi::scsi::Identity;
use backstay_iscsi::server::{ServerConfig, ServerHandle, TargetSpec, TargetTable, UnitSpec};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let read_only = args.iter().position(|arg| arg == "--read-only").map(|at| args.remove(at));
    if args.len() < 2 {
        return Err("usage: serve ADDRESS:PORT [--read-only] FILE...".into());
    }
    let mut units = Vec::new();
    for (lun, path) in (0u16..).zip(&args[1..]) {
        let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(path, read_only.is_some())?);
        let mut naa = [0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        naa[7] = lun as u8;
        let identity =
            Identity { serial: format!("EXAMPLE{lun}"), naa, product: "example".to_owned() };
        units.push(UnitSpec {
            lun,
            device,
            identity,
            physical_block_bytes: if lun == 0 { 4096 } else { 512 },
            keeper: None,
        });
    }
    let table = TargetTable::new();
    let name = "iqn.2026-11.io.backstay:example";
    table.add(TargetSpec {
        name: name.to_owned(),
        alias: "files".to_owned(),
        units,
        allow: Vec::new(),
        chap: None,
    })?;
    let server =
        ServerHandle::start(&[args[0].parse()?], Arc::new(table), ServerConfig::default())?;
    println!("iscsi://{}/{name}/0", server.addresses()[0]);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.stop()?;
    Ok(())
}
