//! How long to wait before a link is tried again.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(500);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30);

/// Pauses that double up to a limit, each shortened by chance so that the links of many
/// nodes do not come back at one moment.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A link was up: the next failure begins anew.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next pause. `chance` is from zero to one: the pause lies between half of the
    /// full one and the full one.
    pub fn next(&mut self, chance: f64) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures += 1;
        full.div_f64(2.0) + full.mul_f64(chance.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(1.0), Duration::from_millis(500));
        assert_eq!(backoff.next(1.0), Duration::from_secs(1));
        assert_eq!(backoff.next(0.0), Duration::from_secs(1));
        for _ in 0..100 {
            backoff.next(0.5);
        }
        assert_eq!(backoff.next(1.0), LONGEST);
        backoff.reset();
        assert_eq!(backoff.next(0.0), Duration::from_millis(250));
    }
}
