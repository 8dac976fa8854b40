//! Run lists: which clusters hold an attribute.

use crate::Error;

/// Clusters of an attribute that lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first, counted from the attribute's start.
    pub(super) vcn: u64,
    /// Where it is on the volume; `None` for a hole.
    pub(super) lcn: Option<u64>,
    pub(super) clusters: u64,
}

impl Run {
    /// The first cluster behind it.
    pub(super) fn end(&self) -> u64 {
        self.vcn + self.clusters
    }
}

/// Cluster numbers have at most so many bits: offsets in bytes are 63 bits.
const CLUSTERS_MAX: u64 = 1 << 53;

/// Decodes mapping pairs: a byte with the lengths of two numbers, a number of clusters, and the distance from the start of
/// the run before, both signed; without a distance the run is a hole. They must map exactly `first..=last`, within `volume` clusters.
pub(super) fn decode(
    pairs: &[u8],
    first: u64,
    last: u64,
    volume: u64,
    what: &str,
) -> Result<Vec<Run>, Error> {
    let bad = |text: &str| Error::damaged(format!("the run list of {what}: {text}"));
    let end = last.wrapping_add(1);
    if end < first || end > CLUSTERS_MAX {
        return Err(bad(&format!("clusters {first} to {last}")));
    }
    let (mut runs, mut vcn, mut lcn, mut rest) = (Vec::<Run>::new(), first, 0i64, pairs);
    while vcn < end {
        let Some((head, behind)) = rest.split_first() else { return Err(bad("it is cut off")) };
        let (len, distance) = (usize::from(head & 15), usize::from(head >> 4));
        if len == 0 || len > 8 || distance > 8 {
            return Err(bad(&format!("it ends, or is wrong, before cluster {vcn} of {end}")));
        }
        let Some((numbers, behind)) = behind.split_at_checked(len + distance) else {
            return Err(bad("it is cut off"));
        };
        rest = behind;
        let clusters = u64::try_from(signed(&numbers[..len])).unwrap_or(0);
        if clusters == 0 || clusters > end - vcn {
            return Err(bad(&format!("a run of {clusters} clusters at {vcn}")));
        }
        let place = match distance {
            0 => None,
            _ => {
                let moved = lcn.checked_add(signed(&numbers[len..]));
                lcn = moved.ok_or_else(|| bad("a distance beyond any volume"))?;
                // Windows NT before 5 wrote holes as cluster -1.
                if lcn == -1 { None } else { Some(lcn) }
            }
        };
        let lcn = match place.map(u64::try_from) {
            None => None,
            Some(Ok(lcn)) if lcn.checked_add(clusters).is_some_and(|end| end <= volume) => {
                Some(lcn)
            }
            Some(_) => {
                return Err(bad(&format!("{clusters} clusters at {lcn}, on a volume of {volume}")));
            }
        };
        runs.push(Run { vcn, lcn, clusters });
        vcn += clusters;
    }
    if rest.first().is_some_and(|b| *b != 0) {
        return Err(bad(&format!("it goes on behind cluster {end}")));
    }
    Ok(runs)
}

/// A little-endian number of up to 8 bytes, with a sign.
fn signed(bytes: &[u8]) -> i64 {
    let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut all = [fill; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(all)
}

/// The run that holds cluster `vcn`.
pub(super) fn find(runs: &[Run], vcn: u64) -> Option<&Run> {
    let i = runs.partition_point(|run| run.end() <= vcn);
    runs.get(i).filter(|run| run.vcn <= vcn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_holes_and_steps_back() {
        // 0x18 clusters at 0x5634; 0x10 as a hole; 0x30 at 0x5634 - 0x34.
        let pairs = [0x21, 0x18, 0x34, 0x56, 0x01, 0x10, 0x11, 0x30, 0xcc, 0];
        let runs = decode(&pairs, 0, 0x57, 0x10000, "x").unwrap();
        let run = |vcn, lcn, clusters| Run { vcn, lcn, clusters };
        assert_eq!(
            runs,
            [run(0, Some(0x5634), 0x18), run(0x18, None, 0x10), run(0x28, Some(0x5600), 0x30)]
        );
        assert_eq!(find(&runs, 0x27).unwrap().lcn, None);
        assert_eq!(find(&runs, 0x58), None);
        assert!(decode(&[0], 0, u64::MAX, 1, "x").unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be() {
        let volume = 100;
        for (pairs, last) in [
            (&[0x11, 5, 98, 0][..], 4),
            (&[0x11, 5, 0xf0, 0], 4),
            (&[0x11, 5, 1, 0], 5),
            (&[0x11, 5, 1, 0], 3),
            (&[0x11, 5, 1, 0x11, 1, 1], 4),
            (&[0x11, 0, 1, 0], 4),
            (&[0x11, 0x80, 1, 0], 4),
            (&[0x1f, 5], 4),
            (&[0x91, 5], 4),
            (&[0x11, 5], 4),
            (&[], 4),
            (&[0x11, 5, 1, 0], u64::MAX - 1),
        ] {
            assert!(decode(pairs, 0, last, volume, "x").is_err(), "{pairs:?}");
        }
    }
}
