//! Ctrl-C and SIGTERM: the first asks for an orderly end, the second ends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{CliError, Exit};

const NONE: u8 = 0;

/// Which signal came first, shared with everything that must stop for it.
#[derive(Debug, Clone)]
pub(crate) struct Signals {
    /// The exit code the signal asks for, or `NONE`.
    asked: Arc<AtomicU8>,
}

impl Signals {
    /// Starts listening. From here on a signal no longer ends the process by itself, so only
    /// commands that look at [`Signals::caught`] may call this.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let failed = |error: std::io::Error| CliError::io("cannot listen for signals", &error);
        let asked = Arc::new(AtomicU8::new(NONE));
        let seen = Arc::clone(&asked);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (mut interrupt, mut terminate, mut hang_up) = {
            // Registering needs the runtime's reactor.
            let _inside = runtime.enter();
            (
                signal(SignalKind::interrupt()).map_err(failed)?,
                signal(SignalKind::terminate()).map_err(failed)?,
                signal(SignalKind::hangup()).map_err(failed)?,
            )
        };
        let listener = move || {
            runtime.block_on(async move {
                loop {
                    let exit = tokio::select! {
                        _ = interrupt.recv() => Exit::Interrupted,
                        _ = terminate.recv() => Exit::Terminated,
                        _ = hang_up.recv() => Exit::Terminated,
                    };
                    if seen.swap(exit.code(), Ordering::SeqCst) != NONE {
                        // Somebody insists. Nothing acknowledged can be lost by this: what is
                        // not committed is not visible, and half files have temporary names.
                        #[allow(clippy::exit, reason = "the user asked twice to stop at once")]
                        std::process::exit(i32::from(exit.code()));
                    }
                }
            });
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(listener).map_err(failed)?;
        Ok(Self { asked })
    }

    /// The signal that came, if one did.
    pub(crate) fn caught(&self) -> Option<Exit> {
        match self.asked.load(Ordering::SeqCst) {
            NONE => None,
            code if code == Exit::Interrupted.code() => Some(Exit::Interrupted),
            _ => Some(Exit::Terminated),
        }
    }

    /// Blocks until a signal comes or `ended` answers true; looks ten times a second.
    pub(crate) fn wait(&self, mut ended: impl FnMut() -> bool) -> Option<Exit> {
        const LOOK_EVERY: Duration = Duration::from_millis(100);
        loop {
            if let Some(exit) = self.caught() {
                return Some(exit);
            }
            if ended() {
                return None;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
