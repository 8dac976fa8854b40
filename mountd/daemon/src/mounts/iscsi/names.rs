//! What a target and its units are called: the same after a restart, and nobody else's.

use backstay_api::Refusal;
use backstay_api::mountd::Secret;
use backstay_iscsi::scsi::Identity;
use zeroize::Zeroizing;

use super::super::start::random;

/// Whose names they are. A name of this sort belongs to the owner of a domain; we own none, and `.internal` is kept free for
/// names that are used inside of a network alone, so that this one is nobody's.
const AUTHORITY: &str = "iqn.2026-11.internal.backstay";
/// So much of a machine's name is in the target's, which has 223 bytes in all.
const MAX_MACHINE_CHARS: usize = 128;
/// The letters of secrets. Each takes 6 bits, and none of them means anything to a shell or in a URI.
const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._";
/// Letters of a secret: 132 bits.
const SECRET_LETTERS: usize = 22;
/// Letters of a short secret: 96 bits, the least that RFC 7143 (9.2.1) asks for. Windows takes no secret that is longer.
const SHORT_SECRET_LETTERS: usize = 16;
/// What disks call themselves.
const PRODUCT: &str = "Backstay disk";

/// The name of a mount's target: `iqn.2026-11.internal.backstay:web01.m-4x7kq2`.
pub(in super::super) fn target_name(machine: &str, mount: &str) -> String {
    let mut name = format!("{AUTHORITY}:");
    for c in machine.chars().take(MAX_MACHINE_CHARS) {
        let c = c.to_ascii_lowercase();
        match c {
            // Two in a row are no part of a name anywhere.
            '.' if name.ends_with('.') => name.push('-'),
            'a'..='z' | '0'..='9' | '.' | '-' => name.push(c),
            _ => name.push('-'),
        }
    }
    let name = name.strip_suffix('.').map_or(name.clone(), |name| format!("{name}-"));
    format!("{name}.{mount}")
}

/// What a disk of a mount is called. Another mount of the same disk is another disk, with other data one day.
///
/// The designator is of the kind that anybody may give away (NAA 3, locally assigned), not of the longer one that many arrays
/// use (NAA 6): that one begins with a number which IEEE gives to a maker, and we have none. 60 bits tell all disks of a
/// site apart, and Linux, which looks at the designator's length, and SPC-4, which knows the kind, both take it.
pub(super) fn identity(repository: &str, mount: &str, disk: &str) -> Identity {
    let mut hasher = blake3::Hasher::new_derive_key("backstay 2026-11 iSCSI logical unit");
    for part in [repository, mount, disk] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    let mut from = hasher.finalize_xof();
    let (mut serial, mut local) = ([0; 16], [0; 8]);
    from.fill(&mut serial);
    from.fill(&mut local);
    let mut naa = [0; 16];
    naa[..8].copy_from_slice(&local);
    naa[0] = 0x30 | (naa[0] & 0x0f);
    let serial = serial.iter().map(|byte| format!("{byte:02x}")).collect();
    Identity { serial, naa, product: PRODUCT.to_owned() }
}

/// A new secret, from the system's random numbers; `short`: one that Windows takes.
pub(in super::super) fn secret(short: bool) -> Result<Secret, Refusal> {
    let mut bytes = Zeroizing::new([0; SECRET_LETTERS]);
    random(&mut *bytes)?;
    let letters = if short { SHORT_SECRET_LETTERS } else { SECRET_LETTERS };
    let mut text = String::with_capacity(SECRET_LETTERS);
    text.extend(bytes.iter().take(letters).map(|byte| char::from(LETTERS[usize::from(byte % 64)])));
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn targets_have_names_that_initiators_take() {
        let name = |machine: &str| target_name(machine, "m-4x7kq2");
        assert_eq!(name("web01"), "iqn.2026-11.internal.backstay:web01.m-4x7kq2");
        assert_eq!(name("Web 01/x_y:z"), "iqn.2026-11.internal.backstay:web-01-x-y-z.m-4x7kq2");
        assert_eq!(name("a..b."), "iqn.2026-11.internal.backstay:a.-b-.m-4x7kq2");
        assert_eq!(name("größe"), "iqn.2026-11.internal.backstay:gr--e.m-4x7kq2");
        for machine in ["", "..", ".", "\n\r", &"x".repeat(1000), &"é".repeat(500)] {
            let name = name(machine);
            assert!(name.len() <= 223, "{name}");
            assert!(backstay_iscsi::proto::is_name(&name), "{name}");
        }
    }

    #[test]
    fn each_disk_is_one_of_its_own_and_stays_it() {
        let one = identity("r", "m-1", "disk0");
        assert_eq!(one, identity("r", "m-1", "disk0"));
        assert_eq!((one.naa[0] >> 4, &one.naa[8..]), (3, &[0; 8][..]));
        assert_eq!(one.serial.len(), 32);
        let others = [("q", "m-1", "disk0"), ("r", "m-2", "disk0"), ("r", "m-1", "disk1")];
        let mut all: BTreeSet<([u8; 16], String)> =
            others.iter().map(|(r, m, d)| identity(r, m, d)).map(|i| (i.naa, i.serial)).collect();
        all.insert((one.naa, one.serial.clone()));
        assert_eq!(all.len(), 4);
        // Initiators have noted it: it must not change with a new version.
        assert_eq!(one.serial, "4d75c1ff27074fca5c4769bd4085ca4b");
    }

    #[test]
    fn secrets_are_of_the_length_all_initiators_take() {
        let secrets: BTreeSet<String> = (0..64)
            .map(|i| secret(i % 2 == 0).expect("random numbers").reveal().to_owned())
            .collect();
        assert_eq!(secrets.len(), 64);
        assert_eq!(
            secrets.iter().filter(|s| s.len() == 16).count(),
            32,
            "for Windows, which takes 12 to 16"
        );
        assert_eq!(secrets.iter().filter(|s| s.len() * 6 >= 128).count(), 32);
        let letters: BTreeSet<char> = secrets.iter().flat_map(|s| s.chars()).collect();
        assert!(letters.len() > 48, "{letters:?}");
    }
}
