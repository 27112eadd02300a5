//! So many a second, evenly.

use std::time::Duration;

/// What is lost to timers that come late may be made up for by so much: a second may have a
/// fiftieth more than the rate.
const SLACK: Duration = Duration::from_millis(20);

/// Says when the next may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    interval: Duration,
    next: Duration,
}

impl Pace {
    /// At most `rate` a second; zero counts as one.
    pub fn new(rate: u32) -> Self {
        Pace { interval: Duration::from_secs(1) / rate.max(1), next: Duration::ZERO }
    }

    /// When the next may go, by the steady clock.
    pub fn next(self) -> Duration {
        self.next
    }

    /// Whether one may go now; if so, it has gone.
    pub fn take(&mut self, now: Duration) -> bool {
        if now < self.next {
            return false;
        }
        self.next = self.next.max(now.saturating_sub(SLACK)) + self.interval;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_than_the_rate_and_a_fiftieth() {
        for rate in [1, 3, 50, 1000] {
            let mut pace = Pace::new(rate);
            let start = Duration::from_secs(5);
            let mut gone: Vec<u64> = Vec::new();
            for ms in 0..3000 {
                // Whoever asks more often gets no more.
                while pace.take(start + Duration::from_millis(ms)) {
                    gone.push(ms);
                }
            }
            assert_eq!(gone[0], 0, "the first goes at once");
            let within =
                |from: u64| gone.iter().filter(move |ms| (from..from + 1000).contains(*ms));
            for from in [0, 500, 1999] {
                let most = (rate + rate / 50 + 1) as usize;
                assert!(within(from).count() <= most, "{rate}: {from}");
            }
            assert!(gone.len() >= 3 * rate as usize, "{rate}: it is reached");
        }
        let mut pace = Pace::new(10);
        let late = Duration::from_secs(60);
        assert_eq!((0..9).filter(|_| pace.take(late)).count(), 1, "a pause gives no credit");
    }
}
