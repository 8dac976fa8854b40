//! Keys, region and endpoint from where AWS's own tools look: the environment, then the profile's
//! files. What is found nowhere is left to the machine's own role.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use object_store::aws::AmazonS3ConfigKey as Key;

use super::location::S3Location;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::Secret;

/// Largest profile file that is read.
const FILE_MAX: u64 = 1 << 20;

/// What was found. Shows no secret.
pub(super) struct Found {
    settings: Vec<(Key, String)>,
    region: String,
    endpoint: Option<String>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("region", &self.region).finish_non_exhaustive()
    }
}

impl Found {
    pub(super) fn settings(&self) -> &[(Key, String)] {
        &self.settings
    }

    pub(super) fn region(&self) -> &str {
        &self.region
    }

    pub(super) fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }
}

/// Looks in the environment and the profile's files. `Invalid` if a profile is named that is
/// nowhere, or if half a key is given.
pub(super) fn find(location: &S3Location, given: Option<&(String, Secret)>) -> Result<Found> {
    let Some((id, secret)) = given else {
        let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        return find_in(location, &variable, &Profile::load(&variable)?);
    };
    let secret = String::from_utf8(secret.expose().to_vec())
        .map_err(|_| Error::new(ErrorKind::Invalid, "the secret key is no text"))?;
    let keys = [(Key::AccessKeyId, id.clone()), (Key::SecretAccessKey, secret)];
    let none = Profile(HashMap::new());
    let found = find_in(location, &|_| None, &none)?;
    Ok(Found { settings: keys.into(), ..found })
}

fn find_in(
    location: &S3Location,
    variable: &dyn Fn(&str) -> Option<String>,
    profile: &Profile,
) -> Result<Found> {
    let mut settings = Vec::new();
    let id = variable("AWS_ACCESS_KEY_ID");
    let secret = variable("AWS_SECRET_ACCESS_KEY");
    if id.is_some() != secret.is_some() {
        return Err(Error::new(
            ErrorKind::Invalid,
            "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set",
        ));
    }
    let of_profile = |name: &str| profile.get(name);
    let (id, secret, token) = match (id, secret) {
        (Some(id), Some(secret)) => (Some(id), Some(secret), variable("AWS_SESSION_TOKEN")),
        _ => (
            of_profile("aws_access_key_id"),
            of_profile("aws_secret_access_key"),
            of_profile("aws_session_token"),
        ),
    };
    let given = [
        (Key::AccessKeyId, id),
        (Key::SecretAccessKey, secret),
        (Key::Token, token),
        (Key::WebIdentityTokenFile, variable("AWS_WEB_IDENTITY_TOKEN_FILE")),
        (Key::RoleArn, variable("AWS_ROLE_ARN")),
        (Key::RoleSessionName, variable("AWS_ROLE_SESSION_NAME")),
        (Key::ContainerCredentialsRelativeUri, variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")),
        (Key::ContainerCredentialsFullUri, variable("AWS_CONTAINER_CREDENTIALS_FULL_URI")),
        (Key::ContainerAuthorizationTokenFile, variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")),
    ];
    settings.extend(given.into_iter().filter_map(|(key, value)| Some((key, value?))));
    let region = location
        .region()
        .map(str::to_owned)
        .or_else(|| variable("AWS_REGION"))
        .or_else(|| variable("AWS_DEFAULT_REGION"))
        .or_else(|| of_profile("region"))
        .unwrap_or_else(|| "us-east-1".to_owned());
    let endpoint = variable("AWS_ENDPOINT_URL_S3")
        .or_else(|| variable("AWS_ENDPOINT_URL"))
        .or_else(|| of_profile("endpoint_url"));
    Ok(Found { settings, region, endpoint })
}

/// One profile of `~/.aws/credentials` and `~/.aws/config`.
struct Profile(HashMap<String, String>);

impl Profile {
    fn load(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let named = variable("AWS_PROFILE");
        let name = named.as_deref().unwrap_or("default");
        let home = variable("HOME").map(PathBuf::from);
        let file = |over: &str, usual: &str| {
            let usual = || home.as_ref().map(|h| h.join(".aws").join(usual));
            variable(over).map(PathBuf::from).or_else(usual)
        };
        let mut fields = HashMap::new();
        let mut there = false;
        let places = [
            (file("AWS_CONFIG_FILE", "config"), "profile "),
            // Read last: keys there go before those in the other file.
            (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ""),
        ];
        for (path, word) in places {
            let Some(text) = path.as_deref().map(read).transpose()?.flatten() else { continue };
            let long = format!("{word}{name}");
            let wanted = |section: &str| section == long || (section == name && name == "default");
            there |= section(&text, wanted, &mut fields);
        }
        match named {
            Some(name) if !there => Err(Error::new(
                ErrorKind::Invalid,
                format!("AWS_PROFILE names the profile '{name}', which is in no file of AWS's"),
            )),
            _ => Ok(Self(fields)),
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    let cannot = |e| Error::io(format!("cannot read {}", path.display()), e);
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() <= FILE_MAX && meta.is_file() => {}
        Ok(_) => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(cannot(e)),
    }
    std::fs::read_to_string(path).map(Some).map_err(cannot)
}

/// Reads the `name = value` lines of the wanted section; whether there is one.
fn section(
    text: &str,
    wanted: impl Fn(&str) -> bool,
    fields: &mut HashMap<String, String>,
) -> bool {
    let (mut inside, mut there) = (false, false);
    for line in text.lines() {
        // Settings of one service stand deeper and are not of the profile itself.
        let nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            inside = wanted(name.trim());
            there |= inside;
        } else if inside
            && !nested
            && !line.starts_with(['#', ';'])
            && let Some((name, value)) = line.split_once('=')
        {
            fields.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    there
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(text: &str) -> S3Location {
        S3Location::parse(text).unwrap()
    }

    fn found(at: &str, env: &[(&str, &str)]) -> Result<Found> {
        let variable =
            |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        find_in(&location(at), &variable, &Profile::load(&variable)?)
    }

    fn value(found: &Found, key: Key) -> Option<&str> {
        found.settings().iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str())
    }

    #[test]
    fn the_environment_goes_first_and_the_address_before_it() {
        let env = [
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "eu-1"),
            ("AWS_ENDPOINT_URL", "https://ceph"),
        ];
        let f = found("bucket", &env).unwrap();
        assert_eq!(value(&f, Key::SecretAccessKey), Some("secret"));
        assert_eq!((f.region(), f.endpoint()), ("eu-1", Some("https://ceph")));
        assert_eq!(found("bucket?region=x", &env).unwrap().region(), "x");
        assert!(!format!("{f:?}").contains("secret"));
        assert_eq!(found("bucket", &env[..1]).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(found("bucket", &[]).unwrap().region(), "us-east-1");
    }

    #[test]
    fn profiles_are_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        let keys = "[default]\naws_access_key_id = d\naws_secret_access_key=ds\n# c\n\n\
                    [other]\naws_access_key_id = o\naws_secret_access_key = os==\n";
        std::fs::write(dir.path().join(".aws/credentials"), keys).unwrap();
        let config = "[default]\nregion = r1\n[profile other]\nregion = r2\ns3 =\n  \
                      endpoint_url = https://nested\nendpoint_url = https://plain\n";
        std::fs::write(dir.path().join(".aws/config"), config).unwrap();
        let home = ("HOME", dir.path().to_str().unwrap());
        let f = found("bucket", &[home]).unwrap();
        assert_eq!(value(&f, Key::AccessKeyId), Some("d"));
        assert_eq!((f.region(), f.endpoint()), ("r1", None));
        let f = found("bucket", &[home, ("AWS_PROFILE", "other")]).unwrap();
        assert_eq!(value(&f, Key::SecretAccessKey), Some("os=="));
        assert_eq!((f.region(), f.endpoint()), ("r2", Some("https://plain")));
        let error = found("bucket", &[home, ("AWS_PROFILE", "none")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        // Keys of the environment are not mixed with a profile's token.
        let env = [home, ("AWS_ACCESS_KEY_ID", "e"), ("AWS_SECRET_ACCESS_KEY", "es")];
        assert_eq!(value(&found("bucket", &env).unwrap(), Key::AccessKeyId), Some("e"));
    }
}
