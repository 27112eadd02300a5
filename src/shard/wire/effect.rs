//! What goes out on a link of another node, and what is asked of its servers.

use crate::shard::effect::{Do, HandOver, Item, Send, ToLink, Verdict};
use crate::shard::input::Stage;
use crate::shard::request::{Answered, Errand, Request};
use crate::shard::retrieve::{Answer, Listed, Refused, Retrieved};
use crate::store::Fate;
use crate::time::Timestamp;
use crate::words::MessageId;

use super::basics::{In, Out, Unreadable, bytes, flag, list, number, signed, text};
use super::input::{read_asker, write_asker};

const VERDICT: u8 = 1;
const HAND_OVER: u8 = 2;
const HANDED_OVER: u8 = 3;
const DELETED: u8 = 4;
const ACCOUNT_REMOVED: u8 = 5;
const RETRIEVED: u8 = 6;

/// Writes what goes out on a link of another node. False: a shard says no such thing on a link of
/// its choice.
pub(super) fn write_to_link(out: &mut Out, what: &ToLink) -> bool {
    match what {
        ToLink::Verdict(verdict) => {
            out.push(VERDICT);
            write_verdict(out, verdict);
        }
        ToLink::HandOver(hand_over) => {
            out.push(HAND_OVER);
            write_hand_over(out, hand_over);
        }
        ToLink::HandedOver { host, session, n, count } => {
            out.push(HANDED_OVER);
            text(out, host);
            text(out, session);
            number(out, *n);
            number(out, *count);
        }
        ToLink::Deleted { host, session, batch } => {
            out.push(DELETED);
            text(out, host);
            text(out, session);
            number(out, *batch);
        }
        ToLink::AccountRemoved { host, request, done } => {
            out.push(ACCOUNT_REMOVED);
            text(out, host);
            text(out, request);
            flag(out, *done);
        }
        ToLink::Retrieved(retrieved) => {
            out.push(RETRIEVED);
            write_retrieved(out, retrieved);
        }
        ToLink::Send(_) | ToLink::Request(_) | ToLink::Response(_) => return false,
    }
    true
}

pub(super) fn read_to_link(body: &mut In) -> Result<ToLink, Unreadable> {
    Ok(match body.byte()? {
        VERDICT => ToLink::Verdict(read_verdict(body)?),
        HAND_OVER => ToLink::HandOver(read_hand_over(body)?),
        HANDED_OVER => ToLink::HandedOver {
            host: body.text()?,
            session: body.text()?,
            n: body.number()?,
            count: body.number()?,
        },
        DELETED => {
            ToLink::Deleted { host: body.text()?, session: body.text()?, batch: body.number()? }
        }
        ACCOUNT_REMOVED => ToLink::AccountRemoved {
            host: body.text()?,
            request: body.string()?,
            done: body.flag()?,
        },
        RETRIEVED => ToLink::Retrieved(read_retrieved(body)?),
        _ => return Err(Unreadable("nothing that goes out on a link")),
    })
}

fn write_verdict(out: &mut Out, verdict: &Verdict) {
    text(out, &verdict.host);
    text(out, &verdict.key);
    out.push(match verdict.stage {
        Stage::Rules => 0,
        Stage::Offline => 1,
        Stage::Undelivered => 2,
    });
    out.push(match verdict.what {
        Do::Deliver => 0,
        Do::Stored => 1,
        Do::Discarded => 2,
        Do::Retry => 3,
    });
    flag(out, verdict.silent);
    list(out, &verdict.sends, |out, send| text(out, send));
}

fn read_verdict(body: &mut In) -> Result<Verdict, Unreadable> {
    Ok(Verdict {
        host: body.text()?,
        key: body.text()?,
        stage: match body.byte()? {
            0 => Stage::Rules,
            1 => Stage::Offline,
            2 => Stage::Undelivered,
            _ => return Err(Unreadable("an unknown stage")),
        },
        what: match body.byte()? {
            0 => Do::Deliver,
            1 => Do::Stored,
            2 => Do::Discarded,
            3 => Do::Retry,
            _ => return Err(Unreadable("an unknown verdict")),
        },
        silent: body.flag()?,
        sends: body.list(In::string)?,
    })
}

fn write_hand_over(out: &mut Out, hand_over: &HandOver) {
    text(out, &hand_over.host);
    text(out, &hand_over.session);
    number(out, hand_over.batch);
    flag(out, hand_over.view);
    list(out, &hand_over.items, |out, item| {
        signed(out, item.id.0);
        signed(out, item.stamp.as_micros());
        bytes(out, &item.stanza);
    });
}

fn read_hand_over(body: &mut In) -> Result<HandOver, Unreadable> {
    Ok(HandOver {
        host: body.text()?,
        session: body.text()?,
        batch: body.number()?,
        view: body.flag()?,
        items: body.list(|body| {
            let id = MessageId(body.signed()?);
            let stamp = Timestamp::from_micros(body.signed()?);
            Ok(Item { id, stamp, stanza: body.bytes()? })
        })?,
    })
}

fn write_retrieved(out: &mut Out, retrieved: &Retrieved) {
    write_asker(out, &retrieved.asker);
    match &retrieved.answer {
        Answer::Done => out.push(0),
        Answer::Count(messages) => {
            out.push(1);
            number(out, *messages);
        }
        Answer::List(listed) => {
            out.push(2);
            list(out, listed, |out, one| {
                signed(out, one.id.0);
                text(out, &one.sender);
            });
        }
        Answer::Refused(refused) => {
            out.push(3);
            let known = Refused::BY_SHARDS.iter().position(|known| known == refused);
            debug_assert!(known.is_some(), "a shard refuses in its own words");
            out.push(known.and_then(|at| u8::try_from(at).ok()).unwrap_or(0));
        }
    }
}

/// The asker's link is one of this node.
fn read_retrieved(body: &mut In) -> Result<Retrieved, Unreadable> {
    let asker = read_asker(body, 0)?;
    let answer = match body.byte()? {
        0 => Answer::Done,
        1 => Answer::Count(body.number()?),
        2 => Answer::List(body.list(|body| {
            let id = MessageId(body.signed()?);
            Ok(Listed { id, sender: body.string()? })
        })?),
        3 => {
            let known = Refused::BY_SHARDS.get(usize::from(body.byte()?));
            Answer::Refused(*known.ok_or(Unreadable("an unknown refusal"))?)
        }
        _ => return Err(Unreadable("an unknown answer")),
    };
    Ok(Retrieved { asker, answer })
}

pub(super) fn write_send(out: &mut Out, send: &Send) {
    text(out, &send.user);
    signed(out, send.id.0);
    text(out, &send.key);
    text(out, &send.stanza);
}

pub(super) fn read_send(body: &mut In) -> Result<Send, Unreadable> {
    Ok(Send {
        user: body.text()?,
        id: MessageId(body.signed()?),
        key: body.string()?,
        stanza: body.string()?,
    })
}

pub(super) fn write_request(out: &mut Out, request: &Request) {
    number(out, request.number);
    text(out, &request.host);
    match &request.ask {
        Errand::Settle { key, to, again, stanza } => {
            out.push(0);
            text(out, key);
            text(out, to);
            flag(out, *again);
            text(out, stanza);
        }
        Errand::Accounts { after, max } => {
            out.push(1);
            text(out, after);
            number(out, *max as u64);
        }
    }
}

pub(super) fn read_request(body: &mut In) -> Result<Request, Unreadable> {
    let (number, host) = (body.number()?, body.text()?);
    let ask = match body.byte()? {
        0 => Errand::Settle {
            key: body.string()?,
            to: body.text()?,
            again: body.flag()?,
            stanza: body.string()?,
        },
        1 => Errand::Accounts { after: body.string()?, max: body.size()? },
        _ => return Err(Unreadable("an unknown request")),
    };
    Ok(Request { number, host, ask })
}

pub(super) fn write_answered(out: &mut Out, asked: u64, answer: &Answered) {
    number(out, asked);
    match answer {
        Answered::Settled(fate) => {
            out.push(0);
            out.push(match fate {
                Fate::Delivered => 0,
                Fate::Stored => 1,
                Fate::Discarded => 2,
                Fate::Expired => 3,
                Fate::Cancelled => 4,
            });
        }
        Answered::Accounts { names, complete } => {
            out.push(1);
            list(out, names, |out, name| text(out, name));
            flag(out, *complete);
        }
        Answered::Refused(says) => {
            out.push(2);
            text(out, says);
        }
        Answered::Failed(says) => {
            out.push(3);
            text(out, says);
        }
    }
}

pub(super) fn read_answered(body: &mut In) -> Result<(u64, Answered), Unreadable> {
    let asked = body.number()?;
    let answer = match body.byte()? {
        0 => Answered::Settled(match body.byte()? {
            0 => Fate::Delivered,
            1 => Fate::Stored,
            2 => Fate::Discarded,
            3 => Fate::Expired,
            4 => Fate::Cancelled,
            _ => return Err(Unreadable("an unknown fate")),
        }),
        1 => Answered::Accounts { names: body.list(In::string)?, complete: body.flag()? },
        2 => Answered::Refused(body.string()?),
        3 => Answered::Failed(body.string()?),
        _ => return Err(Unreadable("an unknown answer")),
    };
    Ok((asked, answer))
}
