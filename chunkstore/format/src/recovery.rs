//! The text of a recovery key: 32 bytes as a person writes them down and types them in again.
//!
//! Thirteen groups of five: four letters of base 32 and one check letter. The check letter tells
//! every single wrong letter, every two that changed places within a group, and every two groups
//! that did, and it tells in which group to look (FORMAT.md, Keys).

use zeroize::Zeroizing;

use crate::FormatError;

/// Bytes of a recovery key.
pub const KEY_LEN: usize = 32;
/// Groups of a recovery key's text.
pub const GROUPS: usize = 13;
/// Letters of a group; the last is its check letter.
pub const GROUP_LEN: usize = 5;

/// The letters, by value: no `I`, `L`, `O` and `U`.
const LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Groups that must be right before a text counts as meant to be a recovery key: by chance, one
/// text in 2^30 has so many.
const RESEMBLES_GROUPS: usize = 6;

const FIELD: &str = "recovery key";

/// The text of a key: `GROUPS` groups with dashes between them, in capital letters.
pub fn encode(key: &[u8; KEY_LEN]) -> Zeroizing<String> {
    // Full length at once: growing would leave copies behind that nobody wipes.
    let mut text = Zeroizing::new(String::with_capacity(GROUPS * (GROUP_LEN + 1)));
    for group in 0..GROUPS {
        if group > 0 {
            text.push('-');
        }
        let mut values = [0u8; GROUP_LEN - 1];
        for (i, value) in values.iter_mut().enumerate() {
            *value = five_bits(key, group * (GROUP_LEN - 1) + i);
        }
        for value in values.into_iter().chain([check_value(group, &values)]) {
            text.push(char::from(LETTERS[usize::from(value)]));
        }
    }
    text
}

/// The key of a text. Small letters count as capitals, `O` as `0`, `I` and `L` as `1`; dashes and
/// white space mean nothing.
///
/// `Invalid`, with the number of the first group that is wrong, if it is no such text. No part of
/// the text is repeated in the error.
pub fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, FormatError> {
    let values = values(text)?;
    let right = right_groups(&values);
    let wrong = (0..GROUPS).find(|&group| !right[group]);
    if values.len() != GROUPS * GROUP_LEN {
        return Err(wrong_length(text, values.len(), wrong));
    }
    if let Some(group) = wrong {
        let detail = format!("group {} of {GROUPS} is not as it was written down", group + 1);
        return Err(FormatError::invalid(FIELD, detail));
    }
    let mut key = Zeroizing::new([0u8; KEY_LEN]);
    for (group, letters) in values.chunks(GROUP_LEN).enumerate() {
        for (i, &value) in letters[..GROUP_LEN - 1].iter().enumerate() {
            set_five_bits(&mut key, group * (GROUP_LEN - 1) + i, value)?;
        }
    }
    Ok(key)
}

/// Whether a text is, in all likelihood, a recovery key with or without typing errors. A text that
/// [`decode`] takes always is.
pub fn resembles(text: &str) -> bool {
    let Ok(values) = values(text) else { return false };
    right_groups(&values).iter().filter(|&&right| right).count() >= RESEMBLES_GROUPS
}

/// Letters beyond those of a key that are still counted, for the message.
const LETTERS_MAX: usize = 4 * GROUPS * GROUP_LEN;

/// The values of all letters.
fn values(text: &str) -> Result<Zeroizing<Vec<u8>>, FormatError> {
    let mut values = Zeroizing::new(Vec::with_capacity(LETTERS_MAX));
    for c in text.chars().filter(|c| *c != '-' && !c.is_whitespace()) {
        let folded = match c.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            other => other,
        };
        let value = LETTERS.iter().position(|&l| char::from(l) == folded).ok_or_else(|| {
            let group = values.len() / GROUP_LEN + 1;
            FormatError::invalid(FIELD, format!("group {group} holds a sign that none can hold"))
        })?;
        if values.len() == LETTERS_MAX {
            return Err(FormatError::invalid(FIELD, "the text is far too long for one"));
        }
        values.push(value as u8);
    }
    Ok(values)
}

/// Which groups are whole and have the right check letter.
fn right_groups(values: &[u8]) -> [bool; GROUPS] {
    let mut right = [false; GROUPS];
    for (group, letters) in values.chunks_exact(GROUP_LEN).take(GROUPS).enumerate() {
        let (data, check) = letters.split_at(GROUP_LEN - 1);
        right[group] = check == [check_value(group, data)];
    }
    right
}

fn wrong_length(text: &str, found: usize, wrong: Option<usize>) -> FormatError {
    // Where the groups stand apart as they were written, the odd one tells itself.
    let lens: Vec<usize> = text
        .split(|c: char| c == '-' || c.is_whitespace())
        .map(|group| group.chars().count())
        .filter(|&len| len > 0)
        .collect();
    let odd = lens.iter().position(|&len| len != GROUP_LEN);
    let detail = match odd {
        Some(group) if lens.len() == GROUPS => {
            format!("group {} of {GROUPS} has {} letters, not {GROUP_LEN}", group + 1, lens[group])
        }
        None => format!("{} groups were given; it has {GROUPS}", lens.len()),
        _ => {
            let group = wrong.map_or(GROUPS, |group| group + 1);
            let needed = GROUPS * GROUP_LEN;
            format!("it has {needed} letters, {found} were given; look at group {group} first")
        }
    };
    FormatError::invalid(FIELD, detail)
}

/// The `n`-th five bits, most significant first; bits beyond the key are zero.
fn five_bits(key: &[u8; KEY_LEN], n: usize) -> u8 {
    (0..5).fold(0, |value, i| {
        let bit = n * 5 + i;
        let set = key.get(bit / 8).is_some_and(|byte| byte & (0x80 >> (bit % 8)) != 0);
        value << 1 | u8::from(set)
    })
}

fn set_five_bits(key: &mut [u8; KEY_LEN], n: usize, value: u8) -> Result<(), FormatError> {
    for i in 0..5 {
        if value & (0x10 >> i) == 0 {
            continue;
        }
        let bit = n * 5 + i;
        match key.get_mut(bit / 8) {
            Some(byte) => *byte |= 0x80 >> (bit % 8),
            // Check letters all right and a bit too many: not made by this version.
            None => return Err(FormatError::unsupported(FIELD, "made by a newer program")),
        }
    }
    Ok(())
}

/// What the letters of a group are multiplied with.
const FACTORS: [u8; GROUP_LEN - 1] = [2, 4, 8, 16];

/// The check letter's value: the group's number (from 1) and each letter times a factor of its
/// own, added up in the field of 32 elements. Factors differ from one another and from the check
/// letter's, which is 1, so two letters that change places are seen.
fn check_value(group: usize, values: &[u8]) -> u8 {
    let number = group as u8 + 1;
    values.iter().zip(FACTORS).fold(number, |sum, (&v, factor)| sum ^ multiply(v, factor))
}

/// The product in the field of 32 elements, modulo x^5 + x^2 + 1.
fn multiply(a: u8, b: u8) -> u8 {
    let mut product = 0;
    let mut shifted = a;
    for bit in 0..5 {
        if b >> bit & 1 == 1 {
            product ^= shifted;
        }
        shifted <<= 1;
        if shifted & 0x20 != 0 {
            shifted ^= 0x25;
        }
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> [u8; KEY_LEN] {
        std::array::from_fn(|i| (i * 37 + 11) as u8)
    }

    fn told(text: &str) -> String {
        decode(text).unwrap_err().to_string()
    }

    #[test]
    fn the_text_is_as_documented() {
        // The same bytes give the same text for ever: people have it on paper.
        assert_eq!(
            encode(&[0; KEY_LEN]).as_str(),
            "00001-00002-00003-00004-00005-00006-00007-00008-00009-0000A-0000B-0000C-0000D"
        );
        assert_eq!(
            encode(&[0xff; KEY_LEN]).as_str(),
            "ZZZZC-ZZZZF-ZZZZE-ZZZZ9-ZZZZ8-ZZZZB-ZZZZA-ZZZZ5-ZZZZ4-ZZZZ7-ZZZZ6-ZZZZ1-ZZZGB"
        );
        assert_eq!(
            encode(&sample()).as_str(),
            "1CR5J-AYMZP-RKMGC-WCTRV-FPHCB-FV0H6-6SDRY-19EA5-XWA36-JQM3S-N36ZV-45SWN-C630N"
        );
    }

    #[test]
    fn what_the_eye_mixes_up_is_one_letter() {
        let text = encode(&[0; KEY_LEN]);
        let sloppy = text.replace('0', "o").replace('1', "l").replace('-', " \n");
        assert_eq!(*decode(&sloppy).unwrap(), [0; KEY_LEN]);
        assert_eq!(*decode(&text.replace(['-', ' '], "")).unwrap(), [0; KEY_LEN]);
    }

    #[test]
    fn every_single_wrong_letter_is_told_with_its_group() {
        let text = encode(&sample());
        for at in (0..text.len()).filter(|at| at % 6 != 5) {
            for &letter in LETTERS.iter().filter(|&&l| l != text.as_bytes()[at]) {
                let mut wrong = text.as_bytes().to_vec();
                wrong[at] = letter;
                let said = told(std::str::from_utf8(&wrong).unwrap());
                assert!(said.contains(&format!("group {} of 13", at / 6 + 1)), "{at}: {said}");
            }
        }
    }

    #[test]
    fn letters_and_groups_that_changed_places_are_told() {
        let text = encode(&sample());
        let groups: Vec<&str> = text.split('-').collect();
        for a in 0..GROUPS {
            for b in a + 1..GROUPS {
                let mut mixed = groups.clone();
                mixed.swap(a, b);
                assert!(told(&mixed.join("-")).contains(&format!("group {} of", a + 1)));
            }
            for (i, j) in (0..GROUP_LEN).flat_map(|i| (0..i).map(move |j| (i, j))) {
                let mut letters: Vec<char> = groups[a].chars().collect();
                letters.swap(i, j);
                let swapped: String = letters.iter().collect();
                let mut mixed = groups.clone();
                mixed[a] = &swapped;
                let same = swapped == groups[a];
                assert_eq!(decode(&mixed.join("-")).is_ok(), same, "group {a}: {i} and {j}");
            }
        }
    }

    #[test]
    fn missing_letters_and_groups_are_told_where() {
        let text = encode(&sample());
        let groups: Vec<&str> = text.split('-').collect();
        let mut short = groups.clone();
        short[6] = &groups[6][..4];
        assert!(told(&short.join("-")).contains("group 7 of 13 has 4 letters"));
        // Run together, the first group that does not fit is the place or lies behind it.
        assert!(told(&short.concat()).contains("64 were given; look at group 7"));
        assert!(told(&groups[..12].join("-")).contains("12 groups were given; it has 13"));
        assert!(told("").contains("0 groups"));
        assert!(told(&"0".repeat(100_000)).contains("far too long"));
        assert!(told("0000u").contains("group 1 holds a sign"));
        assert!(told("00001-0000é").contains("group 2 holds a sign"));
    }

    #[test]
    fn no_error_repeats_the_secret() {
        let text = encode(&sample());
        for wrong in [&text[..70], &text.replace('5', "6"), &format!("{}!", text.as_str())] {
            let said = told(wrong);
            assert!(text.split('-').all(|group| !said.contains(group)), "{said}");
        }
    }

    #[test]
    fn a_key_with_some_errors_is_still_seen_to_be_one() {
        let text = encode(&sample());
        assert!(resembles(&text));
        let groups: Vec<&str> = text.split('-').collect();
        let mut wrong = groups.clone();
        wrong[3] = "AAAAA";
        wrong[9] = "BBBBB";
        assert!(resembles(&wrong.join("-")) && decode(&wrong.join("-")).is_err());
        for other in ["", "correct horse battery staple", "hunter2", "0000 0000 0000 0000"] {
            assert!(!resembles(other), "{other}");
        }
    }

    #[test]
    fn the_unused_bits_must_be_zero() {
        // The last letter of data holds one bit of the key and four that nobody uses yet.
        let group = |values: &[u8]| -> String {
            let check = check_value(GROUPS - 1, values);
            let all = values.iter().chain([&check]);
            all.map(|&v| char::from(LETTERS[usize::from(v)])).collect()
        };
        let text = encode(&[0; KEY_LEN]);
        for value in 1..32 {
            let changed = format!("{}-{}", &text[..71], group(&[0, 0, 0, value]));
            assert_eq!(decode(&changed).is_ok(), value == 16, "{value}");
        }
    }

    proptest! {
        #[test]
        fn there_and_back(key in any::<[u8; KEY_LEN]>()) {
            let text = encode(&key);
            prop_assert_eq!(text.len(), GROUPS * GROUP_LEN + GROUPS - 1);
            prop_assert!(resembles(&text));
            prop_assert_eq!(*decode(&text).unwrap(), key);
            prop_assert_eq!(*decode(&text.to_lowercase()).unwrap(), key);
        }

        #[test]
        fn any_text_is_a_key_or_an_error(text in "\\PC{0,200}") {
            if let Ok(key) = decode(&text) {
                prop_assert_eq!(*decode(&encode(&key)).unwrap(), *key);
            }
        }
    }
}
