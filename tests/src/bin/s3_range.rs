//! A range to shoot at, for `cargo xtask bench s3`: an S3 server behind a proxy that makes distance.
//!
//! Usage: `s3_range DIR`. Starts SeaweedFS with its data in DIR, and a bucket `bench`; prints one
//! JSON line with the proxy's address, then answers commands from standard input, a line each:
//! `link DELAY_MS BYTES_PER_SECOND` sets distance, `counts` tells what has passed, `fetch PREFIX`
//! reads every object below PREFIX through the proxy with plain ranged requests and tells how long
//! that took. Ends with its input.
#![allow(clippy::print_stdout, reason = "printing is what this program does")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use backstay_tests::s3_proxy::{Link, Proxy};
use backstay_tests::s3_server::{Bucket, Kind, Server, ask};

/// Ranges read at once: enough to fill any link with 100 ms delay that this machine can simulate.
const READERS: usize = 32;
/// Bytes of a range, as the store reads.
const RANGE: u64 = 4 << 20;
const BUCKET: &str = "bench";

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).context("usage: s3_range DIR")?;
    let server = Kind::Seaweed.start(Path::new(&dir))?;
    server.make_bucket(BUCKET, Bucket::Plain)?;
    let proxy = Proxy::start(server.address(), Link::default())?;
    println!("{{\"address\": \"{}\"}}", proxy.address());
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["link", delay, rate] => {
                // Half of the delay on the way there, half on the way back.
                let delay = Duration::from_millis(delay.parse()?) / 2;
                proxy.link(Link { delay, rate: rate.parse()? });
                println!("{{}}");
            }
            ["counts"] => {
                let c = proxy.counts();
                println!(
                    "{{\"reads\": {}, \"writes\": {}, \"others\": {}, \"sent\": {}, \
                     \"received\": {}}}",
                    c.reads, c.writes, c.others, c.sent, c.received
                );
            }
            ["fetch", prefix] => {
                let (bytes, time) = fetch(&server, proxy.address(), prefix)?;
                println!("{{\"bytes\": {bytes}, \"seconds\": {}}}", time.as_secs_f64());
            }
            _ => bail!("no such command: {line}"),
        }
    }
    Ok(())
}

/// Reads all objects below `prefix` in ranges; how many bytes that were, and how long it took.
fn fetch(server: &Server, through: SocketAddr, prefix: &str) -> Result<(u64, Duration)> {
    let mut ranges = Vec::new();
    for (key, size) in list(server, prefix)? {
        let starts = (0..size.div_ceil(RANGE)).map(|n| n * RANGE);
        ranges.extend(starts.map(|start| (key.clone(), start, (start + RANGE).min(size))));
    }
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let reader = || -> Result<u64> {
        let mut stream = BufReader::new(TcpStream::connect(through)?);
        let mut total = 0;
        while let Some((key, from, to)) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) {
            total += get(&mut stream, key, *from, *to)?;
        }
        Ok(total)
    };
    let total = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(reader)).collect();
        readers.into_iter().try_fold(0u64, |sum, r| {
            Ok::<_, anyhow::Error>(sum + r.join().ok().context("a reader panicked")??)
        })
    })?;
    Ok((total, start.elapsed()))
}

fn get(stream: &mut BufReader<TcpStream>, key: &str, from: u64, to: u64) -> Result<u64> {
    let last = to - 1;
    let head = format!(
        "GET /{BUCKET}/{key} HTTP/1.1\r\nhost: bench\r\nrange: bytes={from}-{last}\r\n\r\n"
    );
    stream.get_mut().write_all(head.as_bytes())?;
    let mut first = String::new();
    stream.read_line(&mut first)?;
    if !first.contains(" 206 ") {
        bail!("{key} was answered {first}");
    }
    let mut length = None;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse::<u64>().ok();
        }
    }
    let length = length.context("an answer without length")?;
    if length != to - from {
        bail!("{length} bytes of {key} where {} were due", to - from);
    }
    Ok(std::io::copy(&mut stream.take(length), &mut std::io::sink())?)
}

/// Names and sizes of the objects below `prefix`, asked of the server itself.
fn list(server: &Server, prefix: &str) -> Result<Vec<(String, u64)>> {
    let target = format!("/{BUCKET}?list-type=2&max-keys=1000&prefix={prefix}");
    let text = ask(server.address(), "GET", &target, "", b"")?;
    if text.contains("<IsTruncated>true") {
        bail!("more than a thousand objects");
    }
    let field = |part: &str, name: &str| {
        let (_, rest) = part.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(value, _)| value.to_owned())
    };
    text.split("<Contents>")
        .skip(1)
        .map(|part| {
            let size = field(part, "Size").and_then(|s| s.parse().ok()).context("no size")?;
            Ok((field(part, "Key").context("no key")?, size))
        })
        .collect()
}
