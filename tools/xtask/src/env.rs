//! Where things are: the clone, and the cache outside it that makes a second run quick.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Places the chores work with.
#[derive(Debug, Clone)]
pub(crate) struct House {
    /// The clone's root (holds the workspace `Cargo.toml`).
    pub(crate) root: PathBuf,
    /// Downloads and builds that outlive the clone: `$BACKSTAY_BUILD_CACHE`, or `backstay` below the
    /// user's cache directory.
    pub(crate) cache: PathBuf,
    /// Cargo's target directory for everything the chores build.
    pub(crate) target: PathBuf,
}

impl House {
    /// Finds the clone from the working directory upwards and the cache from the environment.
    pub(crate) fn find() -> Result<House> {
        let root = root_of(&std::env::current_dir().context("cannot tell the working directory")?)?;
        let cache = cache_dir()?;
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) if !dir.is_empty() => absolute(Path::new(&dir))?,
            _ => cache.join("target"),
        };
        std::fs::create_dir_all(&cache)
            .with_context(|| format!("cannot make the build cache {}", cache.display()))?;
        Ok(House { root, cache, target })
    }

    /// A path of the clone, for reading or naming.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }
}

fn root_of(start: &Path) -> Result<PathBuf> {
    for dir in start.ancestors() {
        let manifest = dir.join("Cargo.toml");
        if std::fs::read_to_string(&manifest).is_ok_and(|text| text.contains("[workspace]")) {
            return Ok(dir.to_path_buf());
        }
    }
    bail!("no workspace above {}: run this inside the clone", start.display())
}

fn cache_dir() -> Result<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = named("BACKSTAY_BUILD_CACHE") {
        return absolute(&dir);
    }
    if let Some(dir) = named("XDG_CACHE_HOME") {
        return Ok(absolute(&dir)?.join("backstay"));
    }
    let Some(home) = named("HOME") else {
        bail!(
            "neither BACKSTAY_BUILD_CACHE, XDG_CACHE_HOME nor HOME is set: where may builds be kept?"
        )
    };
    Ok(home.join(".cache").join("backstay"))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))
}
