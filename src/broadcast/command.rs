//! What an administrator asks for, and what he is told.

use serde::{Deserialize, Serialize};

use crate::store::{Broadcast, BroadcastState};

/// A command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// A new broadcast. One to everyone begins at once; one to a list waits for the list and
    /// for `begin`.
    Start {
        /// The host that sends it.
        host: String,
        /// To all users of the host.
        everyone: bool,
        /// The message, see [`super::Payload::stanza`].
        stanza: String,
        /// When it expires (XEP-0082).
        expires_at: String,
        /// Messages a second at most.
        rate: u32,
    },
    /// More of its list. Who is on it twice is on it once.
    Add {
        /// Which one.
        broadcast: i64,
        /// Bare JIDs, [`super::ADD`] at most.
        recipients: Vec<String>,
    },
    /// Its list is whole.
    Begin {
        /// Which one.
        broadcast: i64,
    },
    /// All that are known.
    List {},
    /// How one stands.
    Status {
        /// Which one.
        broadcast: i64,
    },
    /// Nothing more is sent until it is resumed.
    Pause {
        /// Which one.
        broadcast: i64,
    },
    /// It goes on.
    Resume {
        /// Which one.
        broadcast: i64,
    },
    /// Nothing more is sent. What was is not taken back.
    Cancel {
        /// Which one.
        broadcast: i64,
    },
}

/// The answer to a command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The broadcast, as it stands now.
    Broadcast(Report),
    /// All of them, by id.
    Broadcasts(Vec<Report>),
    /// It can't be done.
    Problem(Problem),
}

/// How a broadcast stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Its number.
    pub id: i64,
    /// The host that sends it.
    pub host: String,
    /// Whether it is for all users of the host.
    pub everyone: bool,
    /// filling, running, paused, cancelled or done.
    pub state: String,
    /// When it was asked for.
    pub created_at: String,
    /// When it expires.
    pub expires_at: String,
    /// When it came to its end.
    pub ended_at: Option<String>,
    /// Messages a second at most.
    pub rate: u32,
    /// Not all recipients are counted yet.
    pub counting: bool,
    /// Recipients.
    pub total: u64,
    /// A session got it.
    pub delivered: u64,
    /// It is kept for him, or was.
    pub stored: u64,
    /// He does not get it: no account, or the message was refused.
    pub discarded: u64,
    /// It was not sent to him in time.
    pub expired: u64,
    /// It was not sent to him because it was cancelled.
    pub cancelled: u64,
    /// Who is not settled.
    pub left: u64,
    /// Why it is not going on as it should, if so.
    pub trouble: Option<String>,
}

impl Report {
    /// Of a broadcast and what troubles it.
    pub fn of(broadcast: &Broadcast, trouble: Option<String>) -> Self {
        let counts = &broadcast.counts;
        Report {
            id: broadcast.id,
            host: broadcast.host.clone(),
            everyone: broadcast.everyone,
            state: state(broadcast.state).to_owned(),
            created_at: broadcast.created_at.to_string(),
            expires_at: broadcast.expires_at.to_string(),
            ended_at: broadcast.ended_at.map(|at| at.to_string()),
            rate: broadcast.rate,
            counting: broadcast.counted_to.is_some() && broadcast.ended_at.is_none(),
            total: counts.total,
            delivered: counts.delivered,
            stored: counts.stored,
            discarded: counts.discarded,
            expired: counts.expired,
            cancelled: counts.cancelled,
            left: counts.left(),
            trouble,
        }
    }

    /// Whether nothing more comes of it.
    pub fn is_over(&self) -> bool {
        self.ended_at.is_some()
    }

    /// Recipients that are settled.
    pub fn settled(&self) -> u64 {
        self.total.saturating_sub(self.left)
    }
}

fn state(state: BroadcastState) -> &'static str {
    match state {
        BroadcastState::Filling => "filling",
        BroadcastState::Running => "running",
        BroadcastState::Paused => "paused",
        BroadcastState::Cancelled => "cancelled",
        BroadcastState::Done => "done",
    }
}

/// Why a command can't be carried out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Problem {
    /// Of which kind it is.
    pub kind: ProblemKind,
    /// What is wrong, for a person.
    pub says: String,
}

/// Kinds of problems, for programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The command makes no sense.
    Request,
    /// The host is not served.
    Host,
    /// The message is wrong.
    Stanza,
    /// The expiry is wrong.
    Expiry,
    /// The rate is wrong.
    Rate,
    /// A recipient is wrong.
    Recipients,
    /// There is no such broadcast.
    Unknown,
    /// It is in a state in which that can't be done, or there are too many.
    State,
    /// Not now: the server is away, or does not answer, or the store.
    Unavailable,
}

impl Problem {
    /// A reply that says so.
    pub fn reply(kind: ProblemKind, says: impl Into<String>) -> Reply {
        Reply::Problem(Problem { kind, says: says.into() })
    }
}
