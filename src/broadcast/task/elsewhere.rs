//! Commands for broadcasts that another node runs: they go there, and their replies come back.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::shard::Outbox;

use crate::broadcast::{Command, Problem, ProblemKind, Reply};

/// Commands that other nodes have not answered. Whoever gives a command waits for the reply, so
/// that there are no more than administrators.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    asked: HashMap<u64, (u32, oneshot::Sender<Reply>)>,
    next: u64,
}

impl Elsewhere {
    /// Passes a command on to the node that runs the broadcasts, if there is a way to it.
    pub fn pass_on(
        &mut self,
        outbox: &Outbox,
        command: &Command,
        host: Option<Arc<str>>,
        tell: oneshot::Sender<Reply>,
    ) {
        self.next += 1;
        let command = serde_json::to_vec(command).unwrap_or_default();
        match outbox.command(self.next, host, command.into()) {
            Some(peer) => {
                self.asked.insert(self.next, (peer, tell));
            }
            None => out_of_reach(tell),
        }
    }

    /// Another node replies.
    pub fn replied(&mut self, from: u32, number: u64, reply: &[u8]) {
        let Some((peer, tell)) = self.asked.remove(&number) else { return };
        if peer != from {
            self.asked.insert(number, (peer, tell));
            return;
        }
        let broken = || Problem::reply(ProblemKind::Unavailable, "the reply can't be read");
        // Whoever asked may be gone, here and below.
        let _ = tell.send(serde_json::from_slice(reply).unwrap_or_else(|_| broken()));
    }

    /// Another node is out of reach.
    pub fn peer_down(&mut self, peer: u32) {
        let lost = self.asked.extract_if(|_, (of, _)| *of == peer);
        lost.for_each(|(_, (_, tell))| out_of_reach(tell));
    }
}

fn out_of_reach(tell: oneshot::Sender<Reply>) {
    let says = "the node that runs the broadcasts is out of reach: try again";
    let _ = tell.send(Problem::reply(ProblemKind::Unavailable, says));
}

/// A command as another node has passed it on.
pub(super) fn read(command: &Bytes) -> Result<Command, Problem> {
    serde_json::from_slice(command)
        .map_err(|error| Problem { kind: ProblemKind::Request, says: error.to_string() })
}
