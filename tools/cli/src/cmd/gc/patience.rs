//! How long, and how often, a collection is tried again.

use std::str::FromStr;
use std::time::{Duration, Instant};

use jiff::{Span, SpanRelativeTo};

use crate::exit::Exit;
use crate::signals::Signals;

/// The first pause; each is half as long again as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest pause: a backup that ends is noticed so late at most.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What `--wait` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Forever,
    For(Duration),
}

impl FromStr for Wait {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "forever" {
            return Ok(Self::Forever);
        }
        let wrong = || format!("`{text}` is not a duration; write 90s, 30m, 2h or 1d");
        let span: Span = text.parse().map_err(|_| wrong())?;
        let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
        Ok(Self::For(Duration::try_from(length).map_err(|_| wrong())?))
    }
}

/// The time that is left, and the pause that comes next.
#[derive(Debug)]
pub(super) struct Patience {
    /// Nothing: without end.
    until: Option<Instant>,
    pause: Duration,
}

impl Patience {
    pub(super) fn new(wait: Option<Wait>) -> Self {
        let until = match wait {
            None => Some(Instant::now()),
            // Longer than the clock counts is without end.
            Some(Wait::For(length)) => Instant::now().checked_add(length),
            Some(Wait::Forever) => None,
        };
        Self { until, pause: PAUSE_MIN }
    }

    pub(super) fn is_left(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }

    /// Pauses, but not beyond the end; tells the signal that cut it short.
    pub(super) fn pause(&mut self, signals: &Signals) -> Option<Exit> {
        let end = Instant::now() + self.pause;
        let end = self.until.map_or(end, |until| until.min(end));
        self.pause = (self.pause * 3 / 2).min(PAUSE_MAX);
        signals.wait(|| Instant::now() >= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("0s", 0)]
        {
            assert_eq!(text.parse(), Ok(Wait::For(Duration::from_secs(seconds))), "{text}");
        }
        assert_eq!("forever".parse(), Ok(Wait::Forever));
        for text in ["", "10", "-5m", "1mo", "1y", "soon"] {
            assert!(text.parse::<Wait>().is_err(), "{text}");
        }
    }

    #[test]
    fn patience_ends() {
        assert!(!Patience::new(None).is_left());
        assert!(!Patience::new(Some(Wait::For(Duration::ZERO))).is_left());
        assert!(Patience::new(Some(Wait::For(Duration::from_secs(3600)))).is_left());
        assert!(Patience::new(Some(Wait::For(Duration::MAX))).is_left());
        assert!(Patience::new(Some(Wait::Forever)).is_left());
    }
}
