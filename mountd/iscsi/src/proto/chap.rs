//! CHAP (RFC 1994, and RFC 7143, 12.1.3) with MD5, one way and mutual.
//!
//! CHAP hides the secret and nothing else: who listens can try secrets at leisure, and all data goes in the clear.

use md5::{Digest as _, Md5};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::text::{binary, number, to_hexadecimal};

/// MD5's number among CHAP's algorithms.
const MD5: &str = "5";
/// Bytes of an MD5 response.
const RESPONSE_BYTES: usize = 16;
/// Bytes of our challenges.
const CHALLENGE_BYTES: usize = 16;
/// The longest challenge of an initiator (RFC 7143, 12.1.3).
const MAX_CHALLENGE_BYTES: usize = 1024;

/// A name and its secret.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Credentials {
    /// The name.
    pub name: String,
    /// The secret.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How an initiator is to prove who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChapConfig {
    /// What it must know.
    pub initiator: Credentials,
    /// What is proved to one that asks.
    pub target: Option<Credentials>,
}

/// A challenge that was sent.
#[derive(Debug)]
pub(super) struct Challenge {
    identifier: u8,
    value: [u8; CHALLENGE_BYTES],
}

impl Challenge {
    /// A new one; `entropy` fills bytes with noise.
    pub(super) fn new<E>(entropy: &mut dyn FnMut(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let (mut identifier, mut value) = ([0], [0; CHALLENGE_BYTES]);
        entropy(&mut identifier)?;
        entropy(&mut value)?;
        Ok(Self { identifier: identifier[0], value })
    }

    /// The keys that pose it.
    pub(super) fn pairs(&self) -> [(&'static str, String); 3] {
        [
            ("CHAP_A", MD5.to_owned()),
            ("CHAP_I", self.identifier.to_string()),
            ("CHAP_C", to_hexadecimal(&self.value)),
        ]
    }
}

/// Whether a list of algorithms has one of ours.
pub(super) fn is_known(list: &str) -> bool {
    list.split(',').any(|algorithm| algorithm == MD5)
}

/// What an initiator answers, and asks.
#[derive(Debug, Default)]
pub(super) struct Proof<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) response: Option<&'a str>,
    pub(super) identifier: Option<&'a str>,
    pub(super) challenge: Option<&'a str>,
}

/// Checks an initiator's answer, and answers its challenge if it poses one.
///
/// # Errors
/// Why it is not believed, for the log. It takes the same time whatever is wrong with name and response.
pub(super) fn check(
    config: &ChapConfig,
    challenge: &Challenge,
    proof: &Proof<'_>,
) -> Result<Vec<(&'static str, String)>, &'static str> {
    let given = proof.response.and_then(|value| binary(value, RESPONSE_BYTES)).unwrap_or_default();
    let due = response(challenge.identifier, &config.initiator.secret, &challenge.value);
    let named = proof.name.unwrap_or_default().as_bytes();
    // All is computed and compared before anything is decided.
    let name_right = is_equal(named, config.initiator.name.as_bytes());
    let response_right = is_equal(&given, &due);
    if !(name_right & response_right) {
        return Err("the name or the response is wrong");
    }
    let (identifier, value) = match (proof.identifier, proof.challenge) {
        (None, None) => return Ok(Vec::new()),
        (Some(identifier), Some(value)) => (identifier, value),
        _ => return Err("half a challenge"),
    };
    let Some(own) = &config.target else { return Err("the target has nothing to prove itself by") };
    // The kernel's target once took any number here (RFC 1994: one octet).
    let identifier =
        number(identifier).and_then(|n| u8::try_from(n).ok()).ok_or("an identifier beyond 255")?;
    let value =
        binary(value, MAX_CHALLENGE_BYTES).ok_or("a challenge that is none, or too long")?;
    if is_equal(&value, &challenge.value) {
        // RFC 7143, 12.1.3: else it could have us answer our own challenge.
        return Err("our own challenge came back");
    }
    let answer = response(identifier, &own.secret, &value);
    Ok(vec![("CHAP_N", own.name.clone()), ("CHAP_R", to_hexadecimal(&answer))])
}

/// RFC 1994, 4.1: the digest of identifier, secret and challenge.
fn response(identifier: u8, secret: &[u8], challenge: &[u8]) -> [u8; RESPONSE_BYTES] {
    let mut digest = Md5::new();
    digest.update([identifier]);
    digest.update(secret);
    digest.update(challenge);
    digest.finalize().into()
}

/// Whether two values are equal, in a time that tells nothing of where they differ.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ChapConfig {
        let side =
            |name: &str, secret: &[u8]| Credentials { name: name.into(), secret: secret.into() };
        ChapConfig {
            initiator: side("web", b"a secret of sixteen"),
            target: Some(side("backup", b"another secret, longer")),
        }
    }

    fn challenge() -> Challenge {
        let mut next = 0u8;
        let mut noise = |bytes: &mut [u8]| {
            bytes.iter_mut().for_each(|byte| {
                next += 1;
                *byte = next;
            });
            Ok::<(), ()>(())
        };
        Challenge::new(&mut noise).unwrap()
    }

    fn answer(secret: &[u8]) -> String {
        to_hexadecimal(&response(1, secret, &challenge().value))
    }

    fn ask(proof: &Proof<'_>) -> Result<Vec<(&'static str, String)>, &'static str> {
        check(&config(), &challenge(), proof)
    }

    #[test]
    fn one_way() {
        let right = answer(b"a secret of sixteen");
        let proof = |name, response| Proof {
            name: Some(name),
            response: Some(response),
            ..Proof::default()
        };
        assert_eq!(ask(&proof("web", &right)), Ok(Vec::new()));
        let wrong = answer(b"other");
        for (name, response) in [
            ("web", wrong.as_str()),
            ("bew", &right),
            ("web", "0x"),
            ("web", &right[..20]),
            ("", &right),
        ] {
            assert!(ask(&proof(name, response)).is_err());
        }
        assert!(ask(&Proof::default()).is_err());
        let longer = format!("{right}00");
        assert!(ask(&proof("web", &longer)).is_err());
    }

    #[test]
    fn mutual() {
        let right = answer(b"a secret of sixteen");
        let proof = |identifier, challenge| Proof {
            name: Some("web"),
            response: Some(&right),
            identifier: Some(identifier),
            challenge: Some(challenge),
        };
        let due = to_hexadecimal(&response(7, b"another secret, longer", &[1, 2, 3, 4]));
        let answer = vec![("CHAP_N", "backup".to_owned()), ("CHAP_R", due)];
        assert_eq!(ask(&proof("7", "0x01020304")), Ok(answer));
        let mut alone = config();
        alone.target = None;
        assert!(check(&alone, &challenge(), &proof("7", "0x01020304")).is_err());
        assert!(ask(&Proof { challenge: None, ..proof("7", "0x01") }).is_err());
    }

    #[test]
    fn our_own_challenge_does_not_come_back() {
        let right = answer(b"a secret of sixteen");
        let own = to_hexadecimal(&challenge().value);
        let proof = Proof {
            name: Some("web"),
            response: Some(&right),
            identifier: Some("9"),
            challenge: Some(&own),
        };
        assert_eq!(ask(&proof), Err("our own challenge came back"));
    }

    /// Both were holes of the kernel's target: an identifier beyond one octet, a challenge beyond 1,024 bytes.
    #[test]
    fn identifiers_beyond_255_and_challenges_beyond_1024() {
        let right = answer(b"a secret of sixteen");
        let (most, more) = ("ab".repeat(1024), "ab".repeat(1025));
        let ask = |identifier: &str, challenge: &str| {
            let challenge = format!("0x{challenge}");
            ask(&Proof {
                name: Some("web"),
                response: Some(&right),
                identifier: Some(identifier),
                challenge: Some(&challenge),
            })
        };
        assert!(ask("255", &most).is_ok());
        assert!(ask("256", &most).is_err());
        assert!(ask("255", &more).is_err());
        assert!(ask("-1", "00").is_err());
    }
}
