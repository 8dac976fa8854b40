//! Operational keys and how they are settled (RFC 7143, section 13).

use super::MAX_RECV_DATA_SEGMENT_BYTES;
use super::text::number;

/// The longest burst we take and send.
const MAX_BURST_BYTES: u32 = 4 << 20;
/// The longest unsolicited burst we take.
const FIRST_BURST_BYTES: u32 = 256 << 10;

/// What a session has agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// Headers bear a CRC32C.
    pub header_digest: bool,
    /// Data does.
    pub data_digest: bool,
    /// Most bytes of data in a PDU that the initiator takes.
    pub max_recv_data_segment_length: u32,
    /// Most bytes of a sequence of data PDUs.
    pub max_burst_length: u32,
    /// Most bytes of unsolicited data of a command.
    pub first_burst_length: u32,
    /// Data-Out PDUs come only when asked for.
    pub initial_r2t: bool,
    /// Commands may bear data.
    pub immediate_data: bool,
}

impl Default for Params {
    /// What holds where nothing is said (RFC 7143, section 13).
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            max_recv_data_segment_length: 8192,
            max_burst_length: 256 << 10,
            first_burst_length: 64 << 10,
            initial_r2t: true,
            immediate_data: true,
        }
    }
}

/// What is answered to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Nothing: it only tells something.
    Silence,
    /// This value.
    Value(String),
}

impl Reply {
    fn text(value: &str) -> Self {
        Self::Value(value.to_owned())
    }

    fn yes_no(yes: bool) -> Self {
        Self::text(if yes { "Yes" } else { "No" })
    }
}

/// The keys of normal sessions alone (RFC 7143, section 13: "Irrelevant when: SessionType=Discovery").
const OF_NORMAL_SESSIONS: &[&str] = &[
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxBurstLength",
    "FirstBurstLength",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "TaskReporting",
    "iSCSIProtocolLevel",
];

impl Params {
    /// Settles an operational key.
    pub fn settle(&mut self, key: &str, value: &str, discovery: bool) -> Reply {
        if discovery && OF_NORMAL_SESSIONS.contains(&key) {
            return Reply::text("Irrelevant");
        }
        self.try_settle(key, value).unwrap_or_else(|| Reply::text("Reject"))
    }

    /// `None` is a value that cannot be.
    fn try_settle(&mut self, key: &str, value: &str) -> Option<Reply> {
        let ranged = |from: u32, to: u32| number(value).filter(|n| (from..=to).contains(n));
        let told = |n: u32| Some(Reply::Value(n.to_string()));
        match key {
            "HeaderDigest" => {
                self.header_digest = digest(value)?;
                Some(Reply::text(if self.header_digest { "CRC32C" } else { "None" }))
            }
            "DataDigest" => {
                self.data_digest = digest(value)?;
                Some(Reply::text(if self.data_digest { "CRC32C" } else { "None" }))
            }
            "MaxRecvDataSegmentLength" => {
                self.max_recv_data_segment_length = ranged(512, (1 << 24) - 1)?;
                Some(Reply::Silence)
            }
            "MaxBurstLength" => {
                self.max_burst_length = ranged(512, (1 << 24) - 1)?.min(MAX_BURST_BYTES);
                told(self.max_burst_length)
            }
            "FirstBurstLength" => {
                let most = FIRST_BURST_BYTES.min(self.max_burst_length);
                self.first_burst_length = ranged(512, (1 << 24) - 1)?.min(most);
                told(self.first_burst_length)
            }
            "InitialR2T" => {
                self.initial_r2t = yes(value)?;
                Some(Reply::yes_no(self.initial_r2t))
            }
            "ImmediateData" => {
                self.immediate_data = yes(value)?;
                Some(Reply::yes_no(self.immediate_data))
            }
            "DataPDUInOrder" | "DataSequenceInOrder" => yes(value).map(|_| Reply::yes_no(true)),
            "MaxConnections" | "MaxOutstandingR2T" => ranged(1, 65_535).and_then(|_| told(1)),
            "ErrorRecoveryLevel" => ranged(0, 2).and_then(|_| told(0)),
            "DefaultTime2Wait" => ranged(0, 3600).and_then(|n| told(n.max(2))),
            "DefaultTime2Retain" => ranged(0, 3600).and_then(|_| told(0)),
            // RFC 7144, 7.1: we speak what RFC 7143 says.
            "iSCSIProtocolLevel" => ranged(0, 31).and_then(|n| told(n.min(1))),
            "TaskReporting" => {
                value.split(',').any(|v| v == "RFC3720").then(|| Reply::text("RFC3720"))
            }
            // Obsolete (RFC 7143, 13.25), and still asked by some.
            "IFMarker" | "OFMarker" => yes(value).map(|_| Reply::yes_no(false)),
            "IFMarkInt" | "OFMarkInt" => None,
            "RDMAExtensions" => yes(value).map(|_| Reply::yes_no(false)),
            _ => Some(Reply::text("NotUnderstood")),
        }
    }

    /// Once all is said: what holds whatever was said.
    pub fn finish(&mut self) {
        self.first_burst_length = self.first_burst_length.min(self.max_burst_length);
    }
}

/// What we tell of ourselves.
pub fn declaration() -> (&'static str, String) {
    ("MaxRecvDataSegmentLength", MAX_RECV_DATA_SEGMENT_BYTES.to_string())
}

/// The answer to a key that is not for the full feature phase (RFC 7143, section 13, "Use").
pub fn in_full_feature(key: &str) -> &'static str {
    let known = OF_NORMAL_SESSIONS.contains(&key)
        || matches!(
            key,
            "HeaderDigest"
                | "DataDigest"
                | "ErrorRecoveryLevel"
                | "DefaultTime2Wait"
                | "DefaultTime2Retain"
                | "SessionType"
                | "AuthMethod"
                | "InitiatorName"
                | "TargetName"
        );
    if known { "Reject" } else { "NotUnderstood" }
}

/// The first digest of a list that we have; whether it is CRC32C.
fn digest(list: &str) -> Option<bool> {
    list.split(',').find_map(|name| match name {
        "CRC32C" => Some(true),
        "None" => Some(false),
        _ => None,
    })
}

fn yes(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(key: &str, value: &str) -> (Reply, Params) {
        let mut params = Params::default();
        let reply = params.settle(key, value, false);
        (reply, params)
    }

    /// RFC 7143, section 13: each key, a value, and what comes of it.
    #[test]
    fn every_key_by_its_result_function() {
        for (key, offered, answer) in [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("DataDigest", "None,CRC32C", "None"),
            ("HeaderDigest", "MD5,CRC32C", "CRC32C"),
            ("HeaderDigest", "MD5", "Reject"),
            ("MaxBurstLength", "16776192", "4194304"),
            ("MaxBurstLength", "0x2000", "8192"),
            ("MaxBurstLength", "511", "Reject"),
            ("MaxBurstLength", "16777216", "Reject"),
            ("FirstBurstLength", "262144", "262144"),
            ("FirstBurstLength", "1048576", "262144"),
            ("InitialR2T", "No", "No"),
            ("InitialR2T", "Yes", "Yes"),
            ("InitialR2T", "yes", "Reject"),
            ("ImmediateData", "Yes", "Yes"),
            ("ImmediateData", "No", "No"),
            ("MaxConnections", "8", "1"),
            ("MaxConnections", "0", "Reject"),
            ("MaxOutstandingR2T", "16", "1"),
            ("ErrorRecoveryLevel", "2", "0"),
            ("ErrorRecoveryLevel", "3", "Reject"),
            ("DefaultTime2Wait", "0", "2"),
            ("DefaultTime2Retain", "20", "0"),
            ("DataPDUInOrder", "No", "Yes"),
            ("DataSequenceInOrder", "Yes", "Yes"),
            ("IFMarker", "Yes", "No"),
            ("OFMarkInt", "1~4", "Reject"),
            ("iSCSIProtocolLevel", "2", "1"),
            ("TaskReporting", "ResponseFence,RFC3720", "RFC3720"),
            ("X-com.example.thing", "1", "NotUnderstood"),
        ] {
            assert_eq!(settle(key, offered).0, Reply::text(answer), "{key}={offered}");
        }
        let (reply, params) = settle("MaxRecvDataSegmentLength", "65536");
        assert_eq!((reply, params.max_recv_data_segment_length), (Reply::Silence, 65_536));
        let (_, params) = settle("MaxRecvDataSegmentLength", "1");
        assert_eq!(params.max_recv_data_segment_length, 8192, "what is rejected changes nothing");
    }

    #[test]
    fn the_first_burst_is_no_longer_than_any() {
        let mut params = Params::default();
        params.settle("FirstBurstLength", "262144", false);
        params.settle("MaxBurstLength", "8192", false);
        params.finish();
        assert_eq!(params.first_burst_length, 8192);
    }

    #[test]
    fn keys_of_normal_sessions_mean_nothing_in_discovery() {
        let mut params = Params::default();
        assert_eq!(params.settle("InitialR2T", "No", true), Reply::text("Irrelevant"));
        assert_eq!(params.settle("HeaderDigest", "None", true), Reply::text("None"));
    }
}
