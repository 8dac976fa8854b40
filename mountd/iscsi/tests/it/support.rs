//! A server for tests, and an initiator that says what it is told.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use backstay_blockdev::{BlockDevice, MemDevice};
use backstay_iscsi::proto::digest::crc32c;
use backstay_iscsi::proto::pdu::{
    DataIn, DataOut, LoginRequest, LoginResponse, NO_TAG, R2t, Residual, ScsiCommand, ScsiResponse,
    Stage, opcode,
};
use backstay_iscsi::proto::text::{self, Writer};
use backstay_iscsi::proto::{BHS_BYTES, Serial};
use backstay_iscsi::scsi::Identity;
use backstay_iscsi::server::{
    Chap, Rule, ServerConfig, ServerHandle, TargetSpec, TargetTable, UnitSpec,
};

pub(crate) const TARGET: &str = "iqn.2026-11.io.backstay:disk";
pub(crate) const NAME: &str = "iqn.2001-04.com.example:tester";
pub(crate) const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn unit(lun: u16, device: Arc<dyn BlockDevice>) -> UnitSpec {
    let mut naa = [0; 16];
    naa[0] = 0x30;
    naa[7] = lun as u8 + 1;
    let identity = Identity { serial: format!("TEST{lun}"), naa, product: "test disk".into() };
    UnitSpec { lun, device, identity, physical_block_bytes: 4096, keeper: None }
}

pub(crate) fn target(name: &str, units: Vec<UnitSpec>) -> TargetSpec {
    TargetSpec {
        name: name.into(),
        alias: "for tests".into(),
        units,
        allow: Vec::new(),
        chap: None,
    }
}

/// A server of one target.
pub(crate) struct Server {
    pub(crate) table: Arc<TargetTable>,
    pub(crate) handle: Option<ServerHandle>,
}

impl Server {
    /// One unit over memory that can be written.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self::of(Arc::new(MemDevice::new(bytes)))
    }

    pub(crate) fn of(device: Arc<dyn BlockDevice>) -> Self {
        Self::with(target(TARGET, vec![unit(0, device)]), ServerConfig::default())
    }

    pub(crate) fn with(target: TargetSpec, config: ServerConfig) -> Self {
        let table = Arc::new(TargetTable::new());
        table.add(target).unwrap();
        let handle = ServerHandle::start(&[LOOPBACK, LOOPBACK], table.clone(), config).unwrap();
        Self { table, handle: Some(handle) }
    }

    pub(crate) fn restricted(allow: &[&str], chap: Option<Chap>) -> Self {
        let device = Arc::new(MemDevice::new(vec![7; 1 << 20]));
        let allow = allow.iter().map(|rule| rule.parse::<Rule>().unwrap()).collect();
        let spec = TargetSpec { allow, chap, ..target(TARGET, vec![unit(0, device)]) };
        Self::with(spec, ServerConfig::default())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.handle.as_ref().unwrap().addresses()[0]
    }

    /// A logged in initiator.
    pub(crate) fn login(&self) -> Raw {
        Raw::login(self.address(), &[])
    }
}

/// A PDU as it came.
#[derive(Debug, Clone)]
pub(crate) struct Pdu {
    pub(crate) header: [u8; BHS_BYTES],
    pub(crate) data: Vec<u8>,
}

impl Pdu {
    pub(crate) fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    pub(crate) fn numbers(&self) -> (u32, u32, u32) {
        let get = |at: usize| u32::from_be_bytes(self.header[at..at + 4].try_into().unwrap());
        (get(24), get(28), get(32))
    }
}

/// What became of a command.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: u8,
    pub(crate) residual: Residual,
    pub(crate) data: Vec<u8>,
    /// Key and additional codes.
    pub(crate) sense: Option<(u8, u8, u8)>,
}

impl Done {
    #[track_caller]
    pub(crate) fn good(self) -> Vec<u8> {
        assert_eq!((self.status, self.sense), (0, None));
        self.data
    }

    #[track_caller]
    pub(crate) fn refused(&self, key: u8, code: u8, qualifier: u8) {
        assert_eq!((self.status, self.sense), (2, Some((key, code, qualifier))), "{self:?}");
    }
}

/// An initiator that says what it is told.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    pub(crate) cmd_sn: u32,
    pub(crate) stat_sn: u32,
    pub(crate) tag: u32,
    pub(crate) digests: (bool, bool),
    pub(crate) isid: [u8; 6],
    pub(crate) tsih: u16,
}

impl Raw {
    pub(crate) fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::over(stream)
    }

    pub(crate) fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        let isid = [0x80, 0, 0, 0, 0, 1];
        Self { stream, cmd_sn: 1, stat_sn: 0, tag: 0, digests: (false, false), isid, tsih: 0 }
    }

    /// Connects and logs in to the target with these keys besides.
    #[track_caller]
    pub(crate) fn login(to: SocketAddr, keys: &[(&str, &str)]) -> Self {
        let mut raw = Self::connect(to);
        let (response, _) = raw.log_in_as(NAME, keys);
        assert_eq!(response.status, 0);
        raw
    }

    /// One login request that goes all the way.
    pub(crate) fn log_in_as(
        &mut self,
        name: &str,
        keys: &[(&str, &str)],
    ) -> (LoginResponse, Vec<(String, String)>) {
        let mut all =
            vec![("InitiatorName", name), ("SessionType", "Normal"), ("TargetName", TARGET)];
        all.extend(keys);
        let request = self.login_request(Stage::Operational, Some(Stage::FullFeature));
        let (response, answers) = self.ask_login(&request, &all);
        if response.status == 0 {
            self.tsih = response.tsih;
            let has = |key: &str| answers.iter().any(|(k, v)| k == key && v == "CRC32C");
            self.digests = (has("HeaderDigest"), has("DataDigest"));
        }
        (response, answers)
    }

    pub(crate) fn login_request(&self, csg: Stage, nsg: Option<Stage>) -> LoginRequest {
        LoginRequest {
            transit: nsg.is_some(),
            continues: false,
            csg,
            nsg,
            version_max: 0,
            version_min: 0,
            isid: self.isid,
            tsih: self.tsih,
            initiator_task_tag: 1,
            cid: 0,
            cmd_sn: Serial::new(self.cmd_sn),
            exp_stat_sn: Serial::new(self.stat_sn),
        }
    }

    pub(crate) fn ask_login(
        &mut self,
        request: &LoginRequest,
        keys: &[(&str, &str)],
    ) -> (LoginResponse, Vec<(String, String)>) {
        let mut writer = Writer::default();
        keys.iter().for_each(|(key, value)| writer.pair(key, value));
        self.send(request.encode(), &writer.finish());
        let pdu = self.receive().unwrap();
        let response = LoginResponse::decode(&pdu.header).unwrap();
        self.stat_sn = response.stat_sn.get().wrapping_add(1);
        let pairs = text::parse(&pdu.data).unwrap();
        (response, pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    pub(crate) fn send(&mut self, mut header: [u8; BHS_BYTES], data: &[u8]) {
        header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let mut bytes = header.to_vec();
        if self.digests.0 {
            bytes.extend(crc32c(&header).to_le_bytes());
        }
        let mut padded = data.to_vec();
        padded.resize(data.len().next_multiple_of(4), 0);
        bytes.extend(&padded);
        if self.digests.1 && !data.is_empty() {
            bytes.extend(crc32c(&padded).to_le_bytes());
        }
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next PDU; `None` when the target has closed the connection.
    pub(crate) fn receive(&mut self) -> Option<Pdu> {
        let mut header = [0; BHS_BYTES];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("no answer"),
            Err(_) => return None,
        }
        if self.digests.0 {
            let mut sum = [0; 4];
            self.stream.read_exact(&mut sum).unwrap();
            assert_eq!(sum, crc32c(&header).to_le_bytes(), "a header's digest");
        }
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let mut data = vec![0; len.next_multiple_of(4)];
        self.stream.read_exact(&mut data).unwrap();
        if self.digests.1 && len > 0 {
            let mut sum = [0; 4];
            self.stream.read_exact(&mut sum).unwrap();
            assert_eq!(sum, crc32c(&data).to_le_bytes(), "a data digest");
        }
        data.truncate(len);
        let uses = !matches!(header[0] & 0x3f, opcode::R2T | opcode::DATA_IN) || header[1] & 1 != 0;
        if uses && header[16..20] != [0xff; 4] {
            self.stat_sn = u32::from_be_bytes(header[24..28].try_into().unwrap()).wrapping_add(1);
        }
        Some(Pdu { header, data })
    }

    /// A command's PDU with a tag and a number of its own.
    pub(crate) fn prepare(&mut self, cdb: &[u8], expected: u32, write: bool) -> ScsiCommand {
        let mut whole = [0; 16];
        whole[..cdb.len()].copy_from_slice(cdb);
        self.tag += 1;
        let command = ScsiCommand {
            immediate: false,
            final_pdu: true,
            read: !write && expected > 0,
            write,
            attribute: 1,
            lun: 0,
            initiator_task_tag: self.tag,
            expected_data_transfer_length: expected,
            cmd_sn: Serial::new(self.cmd_sn),
            exp_stat_sn: Serial::new(self.stat_sn),
            cdb: whole,
        };
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        command
    }

    /// A command that reads, to its end.
    pub(crate) fn read(&mut self, cdb: &[u8], expected: u32) -> Done {
        let command = self.prepare(cdb, expected, false);
        self.send(command.encode(), &[]);
        self.finish(&command, &[])
    }

    /// A command that writes: `immediate` bytes of its data go with it, the rest by R2T.
    pub(crate) fn write(&mut self, cdb: &[u8], data: &[u8], immediate: usize) -> Done {
        let command = self.prepare(cdb, data.len() as u32, true);
        self.send(command.encode(), &data[..immediate.min(data.len())]);
        self.finish(&command, data)
    }

    /// Answers R2Ts and gathers data until the command is over. A unit attention is told to nobody, and the command said again.
    pub(crate) fn finish(&mut self, command: &ScsiCommand, out: &[u8]) -> Done {
        let mut data = Vec::new();
        loop {
            let pdu = self.receive().expect("the connection was closed");
            match pdu.opcode() {
                opcode::DATA_IN => {
                    let part = DataIn::decode(&pdu.header).unwrap();
                    assert_eq!(part.initiator_task_tag, command.initiator_task_tag);
                    assert_eq!(part.buffer_offset as usize, data.len());
                    data.extend(&pdu.data);
                    if let Some((status, residual)) = part.status {
                        return Done { status, residual, data, sense: None };
                    }
                }
                opcode::R2T => self.answer(&R2t::decode(&pdu.header).unwrap(), out),
                opcode::SCSI_RESPONSE => {
                    let response = ScsiResponse::decode(&pdu.header).unwrap();
                    assert_eq!(response.initiator_task_tag, command.initiator_task_tag);
                    let sense = (!pdu.data.is_empty())
                        .then(|| (pdu.data[4] & 0xf, pdu.data[14], pdu.data[15]));
                    if matches!(sense, Some((6, ..))) {
                        self.tag += 1;
                        let mut again = command.clone();
                        again.initiator_task_tag = self.tag;
                        again.cmd_sn = Serial::new(self.cmd_sn);
                        self.cmd_sn = self.cmd_sn.wrapping_add(1);
                        self.send(again.encode(), &[]);
                        return self.finish(&again, out);
                    }
                    let (status, residual) = (response.status, response.residual);
                    return Done { status, residual, data, sense };
                }
                other => panic!("operation code {other:#x} came"),
            }
        }
    }

    /// Sends what an R2T asks for, in pieces of at most 64 KiB.
    pub(crate) fn answer(&mut self, r2t: &R2t, out: &[u8]) {
        let from = r2t.buffer_offset as usize;
        let whole = &out[from..from + r2t.desired_data_length as usize];
        let pieces: Vec<&[u8]> = whole.chunks(64 << 10).collect();
        let mut offset = r2t.buffer_offset;
        for (i, piece) in pieces.iter().enumerate() {
            let data_out = DataOut {
                final_pdu: i + 1 == pieces.len(),
                lun: r2t.lun,
                initiator_task_tag: r2t.initiator_task_tag,
                target_transfer_tag: r2t.target_transfer_tag,
                exp_stat_sn: Serial::new(self.stat_sn),
                data_sn: i as u32,
                buffer_offset: offset,
            };
            self.send(data_out.encode(), piece);
            offset += piece.len() as u32;
        }
    }

    /// The next PDU is this command's response.
    #[track_caller]
    pub(crate) fn ready(&mut self) {
        self.read(&[0; 6], 0).good();
    }
}

/// A READ(10) or WRITE(10).
pub(crate) fn ten(opcode: u8, lba: u32, count: u16) -> [u8; 10] {
    let (lba, count) = (lba.to_be_bytes(), count.to_be_bytes());
    [opcode, 0, lba[0], lba[1], lba[2], lba[3], 0, count[0], count[1], 0]
}

/// "No tag", as a tag.
pub(crate) const NONE: u32 = NO_TAG;

/// Waits until something holds.
#[track_caller]
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a program is there; says so if not.
pub(crate) fn has(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&paths).any(|dir| dir.join(program).exists());
    if !there {
        println!("SKIPPED: there is no {program} on this machine");
    }
    there
}
