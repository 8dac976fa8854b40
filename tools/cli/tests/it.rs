//! The real binary, run as users run it: arguments in, exit code, stdout and stderr out.

mod it {
    mod errors;
    mod help;
    mod interrupt;
    mod journey;
    mod keys;
    mod mounts;
    mod recovery;
    mod support;
    mod together;
}
