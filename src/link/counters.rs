//! Counters of the hot path, looked up once.

use metrics::Counter;

use crate::shard::{Do, Stage};

/// What a link counts for each message.
pub struct Counters {
    intercepts: [Counter; 3],
    verdicts: [Counter; 4],
}

impl Counters {
    /// Looks the counters up.
    pub fn new() -> Self {
        let stages = [Stage::Rules, Stage::Offline, Stage::Undelivered];
        let verdicts = [Do::Deliver, Do::Stored, Do::Discarded, Do::Retry];
        Counters {
            intercepts: stages.map(
                |stage| metrics::counter!("amphora_intercepts_total", "stage" => stage.as_str()),
            ),
            verdicts: verdicts
                .map(|what| metrics::counter!("amphora_verdicts_total", "do" => what.as_str())),
        }
    }

    /// An intercept came.
    pub fn intercept(&self, stage: Stage) {
        self.intercepts[stage as usize].increment(1);
    }

    /// A verdict goes.
    pub fn verdict(&self, what: Do) {
        self.verdicts[what as usize].increment(1);
    }
}
