//! A shard goes to another node: what it was asked and has not answered goes on there.

use crate::words::Bare;

use super::input::{Available, Input};
use super::machine::Machine;
use super::retrieve::{Answer, Refused, Retrieve, Retrieved};

/// What the links of this node have asked and nobody has answered. What those of other nodes have
/// asked, these know themselves.
#[derive(Debug, Default)]
pub struct Left {
    /// To be asked again, in order.
    pub inputs: Vec<(Bare, Input)>,
    /// To be answered now: what was begun and can't be done twice.
    pub answers: Vec<Retrieved>,
}

impl Machine {
    /// Forgets its recipients, and says what is left to do for them. Whatever writes are under way
    /// are still answered.
    pub fn leave(&mut self) -> Left {
        let mut left = Left::default();
        for (user, recipient) in std::mem::take(&mut self.recipients) {
            for mut intercept in recipient.waiting {
                intercept.again = true;
                if intercept.link.peer() == 0 {
                    left.inputs.push((user.clone(), Input::Intercept(intercept)));
                }
            }
            // One that has got all only confirms; any node understands that.
            for session in recipient.sessions.into_iter().filter(|s| !s.drained) {
                if session.link.peer() == 0 {
                    let available = Available {
                        link: session.link,
                        host: session.host,
                        session: session.id,
                        n: session.n,
                        user: user.clone(),
                        archive: session.archive,
                        batch_bytes: session.batch_bytes,
                    };
                    left.inputs.push((user.clone(), Input::Available(available)));
                }
            }
            for (asker, batch_bytes, ask) in recipient.retrievals.leave() {
                if asker.link.peer() != 0 {
                    continue;
                }
                match ask {
                    Some(ask) => {
                        let retrieve = Retrieve { asker, ask, batch_bytes };
                        left.inputs.push((user.clone(), Input::Retrieve(retrieve)));
                    }
                    None => {
                        let answer = Answer::Refused(Refused::INTERRUPTED);
                        left.answers.push(Retrieved { asker, answer });
                    }
                }
            }
        }
        left
    }
}
