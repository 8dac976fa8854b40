//! What a guest mounts where, by its own table (fstab(5)).

/// Longest table read: real ones have some dozens of lines.
pub(crate) const FSTAB_MAX: u64 = 256 << 10;
/// Lines taken.
const LINES_MAX: usize = 1024;

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// What is mounted: `UUID=...`, `/dev/mapper/vg-root`.
    pub(crate) spec: String,
    /// Where: an absolute path without a slash at its end, but for `/` itself.
    pub(crate) path: String,
    /// The value of the option `subvol`, without slashes around it.
    pub(crate) subvolume: Option<String>,
}

/// The lines that mount something at a path.
pub(crate) fn parse(table: &[u8]) -> Vec<Line> {
    let text = String::from_utf8_lossy(table);
    text.lines().filter_map(line).take(LINES_MAX).collect()
}

fn line(text: &str) -> Option<Line> {
    let mut fields = text.split_ascii_whitespace();
    let spec = unescaped(fields.next()?);
    if spec.starts_with('#') {
        return None;
    }
    let path = unescaped(fields.next()?);
    if !path.starts_with('/') {
        return None;
    }
    let _fs_type = fields.next();
    let options = fields.next().unwrap_or_default();
    let subvolume = options.split(',').find_map(|option| option.strip_prefix("subvol="));
    let path = match path.trim_end_matches('/') {
        "" => "/".to_owned(),
        path => path.to_owned(),
    };
    Some(Line { spec, path, subvolume: subvolume.map(|name| name.trim_matches('/').to_owned()) })
}

/// Spaces and the like are written as `\040`.
fn unescaped(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, behind)) = rest.split_once('\\') {
        out.push_str(before);
        let code = behind.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) if code.is_ascii() => {
                out.push(char::from(code));
                rest = &behind[3..];
            }
            _ => {
                out.push('\\');
                rest = behind;
            }
        }
    }
    out.push_str(rest);
    out
}

/// What a volume can be called by in a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names<'a> {
    pub(crate) uuid: Option<&'a str>,
    pub(crate) label: &'a str,
    pub(crate) partition_uuid: Option<&'a str>,
    pub(crate) partition_label: &'a str,
    /// As in `web01:NAME`: `vg0/root`, `disk0p1`.
    pub(crate) name: &'a str,
}

impl Names<'_> {
    /// Whether `spec` means this volume, without doubt: names of devices that depend on the order in which a kernel found them do not.
    pub(crate) fn are_meant_by(&self, spec: &str) -> bool {
        let quoted = |value: &str| value.trim_matches('"').to_owned();
        let same = |ours: Option<&str>, theirs: &str| {
            ours.is_some_and(|ours| ours.eq_ignore_ascii_case(&quoted(theirs)))
        };
        let by = |prefix: &str, tag: &str| {
            let by_path = format!("/dev/disk/by-{prefix}/");
            spec.strip_prefix(tag).or_else(|| spec.strip_prefix(&by_path)).map(str::to_owned)
        };
        if let Some(uuid) = by("uuid", "UUID=") {
            return same(self.uuid, &uuid);
        }
        if let Some(label) = by("label", "LABEL=") {
            return !self.label.is_empty() && self.label == quoted(&label);
        }
        if let Some(uuid) = by("partuuid", "PARTUUID=") {
            return same(self.partition_uuid, &uuid);
        }
        if let Some(label) = by("partlabel", "PARTLABEL=") {
            return !self.partition_label.is_empty() && self.partition_label == quoted(&label);
        }
        match spec.strip_prefix("/dev/mapper/") {
            Some(mapped) => self.name.contains('/') && mapper_name(self.name) == mapped,
            None => spec.strip_prefix("/dev/").is_some_and(|name| name == self.name),
        }
    }
}

/// `vg-one/root` as the device mapper writes it: `vg--one-root`.
fn mapper_name(name: &str) -> String {
    let parts: Vec<String> = name.split('/').map(|part| part.replace('-', "--")).collect();
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"# a comment\n\
        UUID=1f2e-33AA / ext4 errors=remount-ro 0 1\n\
        /dev/mapper/vg--one-home  /home/ xfs defaults 0 2\n\
        LABEL=data /srv/my\\040data btrfs noatime,subvol=/@data,compress=zstd 0 0\n\
        proc /proc proc defaults 0 0\n\
        UUID=5 none swap sw 0 0\n\
        half\n\
        \xff\xfe /x\n";

    #[test]
    fn a_table() {
        let lines = parse(TABLE);
        let paths: Vec<&str> = lines.iter().map(|l| l.path.as_str()).collect();
        assert_eq!(paths, ["/", "/home", "/srv/my data", "/proc", "/x"]);
        assert_eq!(lines[2].subvolume.as_deref(), Some("@data"));
        assert_eq!(lines[1].subvolume, None);
        assert!(parse(&[0xff; 3000]).is_empty());
        assert_eq!(parse(&b"a /b\n".repeat(5000)).len(), LINES_MAX);
    }

    #[test]
    fn names_of_volumes() {
        let root = Names {
            uuid: Some("1F2E-33aa"),
            label: "data",
            partition_uuid: Some("c0ffee00-01"),
            partition_label: "boot",
            name: "vg-one/home",
        };
        for spec in [
            "UUID=1f2e-33AA",
            "UUID=\"1f2e-33aa\"",
            "/dev/disk/by-uuid/1f2e-33aa",
            "LABEL=data",
            "PARTUUID=C0FFEE00-01",
            "PARTLABEL=boot",
            "/dev/mapper/vg--one-home",
            "/dev/vg-one/home",
        ] {
            assert!(root.are_meant_by(spec), "{spec}");
        }
        for spec in
            ["UUID=", "LABEL=", "/dev/sda1", "/dev/mapper/vg-one-home", "data", "LABEL=Data"]
        {
            assert!(!root.are_meant_by(spec), "{spec}");
        }
        let nothing = Names::default();
        for spec in ["UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "/dev/", "/dev/mapper/", ""] {
            assert!(!nothing.are_meant_by(spec) || spec == "/dev/", "{spec}");
        }
    }
}
