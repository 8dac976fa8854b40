//! FORMAT.md is the normative text: its tables and the constants of this crate must agree.

use backstay_format::{Field, envelope, index_object, limits, magic, node, pack, recovery};

const DOC: &str = include_str!("../../docs/FORMAT.md");

/// The rows of the first table after the heading `### title`: name, offset, size.
fn table(title: &str) -> Vec<(String, usize, usize)> {
    let heading = format!("### {title}\n");
    let start = DOC.find(&heading).unwrap_or_else(|| panic!("FORMAT.md has no '{heading}'"));
    DOC[start + heading.len()..]
        .lines()
        .take_while(|l| !l.starts_with('#'))
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, name, offset, size, ..] = cells.as_slice() else { return None };
            Some((name.to_string(), offset.parse().ok()?, size.parse().ok()?))
        })
        .collect()
}

fn compare(title: &str, fields: &[Field], end: usize) {
    let expected: Vec<_> = fields.iter().map(|f| (f.name.to_owned(), f.offset, f.size)).collect();
    assert_eq!(table(title), expected, "{title}");
    assert_eq!(fields.last().map(Field::end), Some(end), "{title}");
}

#[test]
fn tables_and_constants_agree() {
    compare("Envelope head", &envelope::FIELDS, envelope::HEAD_LEN);
    compare("Pack header", &pack::header::FIELDS, pack::header::LEN);
    compare("Pack table entry", &pack::entry::FIELDS, pack::entry::LEN);
    compare("Pack trailer", &pack::trailer::FIELDS, pack::trailer::LEN);
    compare("Index object table", &index_object::head::FIELDS, index_object::head::LEN);
    compare("Image tree node", &node::FIELDS, node::HEAD_LEN);
}

#[test]
fn magics_and_limits_stand_in_the_text() {
    let magics = [
        magic::CONFIG,
        magic::SLOT,
        magic::POINT,
        magic::FENCE,
        magic::SESSION,
        magic::REMOVAL,
        magic::PIN,
        magic::GC_PLAN,
        magic::GC_VERDICT,
        magic::GC_END,
        magic::INDEX,
        magic::PACK,
        magic::TRAILER,
    ];
    for (i, m) in magics.iter().enumerate() {
        let text = std::str::from_utf8(m).unwrap();
        assert!(DOC.contains(&format!("`{text}`")), "{text}");
        assert!(!magics[..i].contains(m), "{text} is used twice");
    }
    assert!(DOC.contains("`BSTN`"));
    let zeros = recovery::encode(&[0; recovery::KEY_LEN]);
    assert!(DOC.contains(&format!("`{}`", zeros.as_str())));
    assert!(DOC.contains(&format!("{} slots a node", limits::NODE_FANOUT)));
    assert_eq!(limits::PACK_TARGET, 32 << 20);
    assert!(DOC.contains("reached 32 MiB"));
    assert_eq!((limits::PACK_MAX, limits::PACK_ENTRIES_MAX), (256 << 20, 1_048_576));
    assert!(DOC.contains("beyond 256 MiB or 1,048,576 entries"));
    assert_eq!((limits::INDEX_PAYLOAD_MAX, limits::INDEX_PAYLOAD_TARGET), (64 << 20, 8 << 20));
    assert!(DOC.contains("closed at 8 MiB") && DOC.contains("at most 64 MiB"));
    assert_eq!(node::NODE_LEN_MAX, 2064);
    assert!(DOC.contains("at most 2,064 bytes"));
}
