//! Runs every file of the corpus through its target; also part of the store's tests.

use std::fs;
use std::path::Path;

use backstay_format::fuzz::Target;

/// Files made by the real encoders begin so; others are inputs that once found something.
const SEED: &str = "seed-";
/// Set to write the seeds instead of comparing them.
const UPDATE: &str = "BACKSTAY_UPDATE_CORPUS";

/// Replays the corpus of `targets`, a folder each below `corpus`.
pub(crate) fn replay(corpus: &Path, targets: &[Target]) {
    for target in targets {
        let dir = corpus.join(target.name);
        seeds(&dir, target);
        let mut files = 0;
        for entry in fs::read_dir(&dir).expect("the folder is there") {
            let path = entry.expect("an entry").path();
            // On a panic this is the last line of the output.
            println!("{}", path.display());
            (target.run)(&fs::read(&path).expect("a file of the corpus"));
            files += 1;
        }
        assert!(files > 0, "{}: no corpus", target.name);
        // The shortest inputs there are, and every way to end too early.
        (target.run)(&[]);
        for (_, seed) in (target.seeds)() {
            for end in 0..seed.len() {
                (target.run)(&seed[..end]);
            }
        }
    }
}

/// The seeds in the corpus are those the encoders make today.
fn seeds(dir: &Path, target: &Target) {
    let made = (target.seeds)();
    if std::env::var_os(UPDATE).is_some() {
        let _ = fs::create_dir_all(dir);
        for entry in fs::read_dir(dir).expect("the folder is there") {
            let path = entry.expect("an entry").path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SEED)) {
                fs::remove_file(path).expect("an old seed goes");
            }
        }
        for (name, bytes) in &made {
            fs::write(dir.join(format!("{SEED}{name}")), bytes).expect("a seed is written");
        }
    }
    for (name, bytes) in &made {
        let path = dir.join(format!("{SEED}{name}"));
        assert!(
            fs::read(&path).is_ok_and(|found| found == *bytes),
            "{} is not what the encoder makes; if it should be: {UPDATE}=1 and run this again",
            path.display()
        );
    }
}
