//! What a shard is told, as another node writes it.

use crate::amp::{self, Refusal, Session};
use crate::shard::input::{Asked, Available, Input, Intercept, Leg, Sent, Stage, Taken};
use crate::shard::retrieve::{Ask, Asker, MAX_ITEMS, Retrieve};
use crate::stanza::Message;
use crate::time::Timestamp;
use crate::words::{Bare, LinkId, MessageId};

use super::basics::{In, Out, Unreadable, bytes, flag, list, number, optional, signed, text};

const INTERCEPT: u8 = 1;
const AVAILABLE: u8 = 2;
const TAKEN: u8 = 3;
const ACCOUNT_REMOVED: u8 = 4;
const RETRIEVE: u8 = 5;
const SENT: u8 = 6;

/// Writes what a link of this node says to a shard. False: it is nothing that leaves a node.
pub fn write_input(out: &mut Out, user: &Bare, input: &Input) -> bool {
    text(out, user);
    match input {
        Input::Intercept(intercept) => {
            out.push(INTERCEPT);
            write_intercept(out, intercept);
        }
        Input::Available(available) => {
            out.push(AVAILABLE);
            write_available(out, available);
        }
        Input::Taken(taken) => {
            out.push(TAKEN);
            write_taken(out, taken);
        }
        Input::AccountRemoved { user: _, at, asked } => {
            out.push(ACCOUNT_REMOVED);
            signed(out, at.as_micros());
            write_link(out, asked.link);
            text(out, &asked.host);
            text(out, &asked.request);
        }
        Input::Retrieve(retrieve) => {
            out.push(RETRIEVE);
            write_retrieve(out, retrieve);
        }
        Input::Sent { user: _, id, sent } => {
            out.push(SENT);
            signed(out, id.0);
            flag(out, *sent == Sent::Done);
        }
        _ => return false,
    }
    true
}

/// Reads what a link of a node says to a shard of this one. `from` is the number of that node's
/// incarnation, or zero for this node's own.
///
/// # Errors
///
/// It is not what a node writes.
pub fn read_input(body: bytes::Bytes, from: u32) -> Result<(Bare, Input), Unreadable> {
    let mut body = In::new(body);
    let user: Bare = body.text()?;
    let input = match body.byte()? {
        INTERCEPT => Input::Intercept(Box::new(read_intercept(&mut body, &user, from)?)),
        AVAILABLE => Input::Available(read_available(&mut body, &user, from)?),
        TAKEN => Input::Taken(read_taken(&mut body, &user, from)?),
        ACCOUNT_REMOVED => {
            let at = Timestamp::from_micros(body.signed()?);
            let link = read_link(&mut body, from)?;
            let asked = Asked { link, host: body.text()?, request: body.string()? };
            Input::AccountRemoved { user: user.clone(), at, asked }
        }
        RETRIEVE => Input::Retrieve(read_retrieve(&mut body, &user, from)?),
        SENT => {
            let id = MessageId(body.signed()?);
            let sent = if body.flag()? { Sent::Done } else { Sent::Failed };
            Input::Sent { user: user.clone(), id, sent }
        }
        _ => return Err(Unreadable("an unknown input")),
    };
    body.end()?;
    Ok((user, input))
}

/// Only the number within its node: whose it is, is known from where it comes.
fn write_link(out: &mut Out, link: LinkId) {
    debug_assert_eq!(link.peer(), 0, "a link of another node");
    number(out, u64::from(link.number()));
}

fn read_link(body: &mut In, from: u32) -> Result<LinkId, Unreadable> {
    match body.small()? {
        0 => Err(Unreadable("no link has the number zero")),
        link => Ok(LinkId::of_peer(from, link)),
    }
}

fn write_intercept(out: &mut Out, intercept: &Intercept) {
    write_link(out, intercept.link);
    text(out, &intercept.host);
    text(out, &intercept.key);
    optional(out, intercept.after.as_deref(), text);
    out.push(match intercept.stage {
        Stage::Rules => 0,
        Stage::Offline => 1,
        Stage::Undelivered => 2,
    });
    out.push(match intercept.leg {
        Leg::Recipient => 0,
        Leg::Sender { next_supports_amp: false } => 1,
        Leg::Sender { next_supports_amp: true } => 2,
    });
    let flags = [
        intercept.again,
        intercept.account,
        intercept.archived,
        intercept.forwards_to,
        intercept.gateway,
        intercept.silent,
    ];
    out.push(flags.iter().rev().fold(0, |bits, flag| bits << 1 | u8::from(*flag)));
    list(out, &intercept.sessions, |out, session| {
        text(out, &session.resource);
        out.push(session.priority.cast_unsigned());
        flag(out, session.hibernating);
    });
    signed(out, intercept.stamp.as_micros());
    write_rules(out, intercept.rules.as_ref().map(|rules| rules.as_ref().err()));
    bytes(out, &intercept.message.raw);
}

fn read_intercept(body: &mut In, to: &Bare, from: u32) -> Result<Intercept, Unreadable> {
    let (link, host) = (read_link(body, from)?, body.text()?);
    let (key, after) = (body.text()?, body.optional(In::text)?);
    let stage = match body.byte()? {
        0 => Stage::Rules,
        1 => Stage::Offline,
        2 => Stage::Undelivered,
        _ => return Err(Unreadable("an unknown stage")),
    };
    let leg = match body.byte()? {
        0 => Leg::Recipient,
        leg @ (1 | 2) => Leg::Sender { next_supports_amp: leg == 2 },
        _ => return Err(Unreadable("an unknown leg")),
    };
    let bits = body.byte()?;
    if bits >= 1 << 6 {
        return Err(Unreadable("an unknown flag"));
    }
    let is_set = |bit: u8| bits & (1 << bit) != 0;
    let sessions = body.list(|body| {
        let resource = body.string()?;
        let priority = body.byte()?.cast_signed();
        Ok(Session { resource, priority, hibernating: body.flag()? })
    })?;
    let stamp = Timestamp::from_micros(body.signed()?);
    let refused = read_rules(body)?;
    let message = Message::parse(body.bytes()?, &host);
    let message = message.map_err(|_| Unreadable("a message can't be read"))?;
    let rules = match refused {
        None => None,
        Some(Some(refusal)) => Some(Err(refusal)),
        Some(None) => {
            let rules = amp::check(&message.amp, message.id.as_deref());
            Some(Ok(rules.map_err(|_| Unreadable("rules that are none"))?))
        }
    };
    Ok(Intercept {
        link,
        host,
        key,
        after,
        again: is_set(0),
        stage,
        leg,
        to: to.clone(),
        account: is_set(1),
        archived: is_set(2),
        sessions,
        forwards_to: is_set(3),
        gateway: is_set(4),
        stamp,
        message,
        silent: is_set(5),
        rules,
    })
}

/// The rules themselves stand in the message. `Some(None)`: they are accepted.
fn write_rules(out: &mut Out, rules: Option<Option<&Refusal>>) {
    let numbers = |out: &mut Out, kind: u8, rules: &[usize]| {
        out.push(kind);
        list(out, rules, |out, rule| number(out, *rule as u64));
    };
    match rules {
        None => out.push(0),
        Some(None) => out.push(1),
        Some(Some(refusal)) => match refusal {
            Refusal::MissingId => out.push(2),
            Refusal::SeveralAmp => out.push(3),
            Refusal::BadPerHop => out.push(4),
            Refusal::NoRule => out.push(5),
            Refusal::TooManyRules => out.push(6),
            Refusal::ServiceUnavailable => out.push(7),
            Refusal::UnsupportedConditions(rules) => numbers(out, 8, rules),
            Refusal::UnsupportedActions(rules) => numbers(out, 9, rules),
            Refusal::InvalidRules(rules) => numbers(out, 10, rules),
            Refusal::NotPermitted(rules) => numbers(out, 11, rules),
        },
    }
}

fn read_rules(body: &mut In) -> Result<Option<Option<Refusal>>, Unreadable> {
    Ok(Some(Some(match body.byte()? {
        0 => return Ok(None),
        1 => return Ok(Some(None)),
        2 => Refusal::MissingId,
        3 => Refusal::SeveralAmp,
        4 => Refusal::BadPerHop,
        5 => Refusal::NoRule,
        6 => Refusal::TooManyRules,
        7 => Refusal::ServiceUnavailable,
        8 => Refusal::UnsupportedConditions(body.list(In::size)?),
        9 => Refusal::UnsupportedActions(body.list(In::size)?),
        10 => Refusal::InvalidRules(body.list(In::size)?),
        11 => Refusal::NotPermitted(body.list(In::size)?),
        _ => return Err(Unreadable("an unknown refusal")),
    })))
}

fn write_available(out: &mut Out, available: &Available) {
    write_link(out, available.link);
    text(out, &available.host);
    text(out, &available.session);
    number(out, available.n);
    optional(out, available.archive, |out, at| signed(out, at.as_micros()));
    number(out, available.batch_bytes as u64);
}

fn read_available(body: &mut In, user: &Bare, from: u32) -> Result<Available, Unreadable> {
    Ok(Available {
        link: read_link(body, from)?,
        host: body.text()?,
        session: body.text()?,
        n: body.number()?,
        user: user.clone(),
        archive: body.optional(In::signed)?.map(Timestamp::from_micros),
        batch_bytes: read_batch_bytes(body)?,
    })
}

/// Half of what a server takes: twice as much, and what is added to an item, must be a number.
fn read_batch_bytes(body: &mut In) -> Result<usize, Unreadable> {
    let bytes = body.size()?;
    if bytes > usize::MAX / 4 { Err(Unreadable("a batch is too large")) } else { Ok(bytes) }
}

fn write_taken(out: &mut Out, taken: &Taken) {
    write_link(out, taken.link);
    text(out, &taken.host);
    text(out, &taken.session);
    number(out, taken.batch);
    write_ids(out, &taken.ids);
    flag(out, taken.ended);
}

fn read_taken(body: &mut In, user: &Bare, from: u32) -> Result<Taken, Unreadable> {
    Ok(Taken {
        link: read_link(body, from)?,
        host: body.text()?,
        session: body.text()?,
        user: user.clone(),
        batch: body.number()?,
        ids: read_ids(body)?,
        ended: body.flag()?,
    })
}

fn write_ids(out: &mut Out, ids: &[MessageId]) {
    list(out, ids, |out, id| signed(out, id.0));
}

fn read_ids(body: &mut In) -> Result<Vec<MessageId>, Unreadable> {
    body.list(|body| body.signed().map(MessageId))
}

fn write_retrieve(out: &mut Out, retrieve: &Retrieve) {
    write_asker(out, &retrieve.asker);
    match &retrieve.ask {
        Ask::Count => out.push(0),
        Ask::List => out.push(1),
        Ask::Fetch => out.push(2),
        Ask::Purge => out.push(3),
        Ask::View(ids) => {
            out.push(4);
            write_ids(out, ids);
        }
        Ask::Remove(ids) => {
            out.push(5);
            write_ids(out, ids);
        }
    }
    number(out, retrieve.batch_bytes as u64);
}

fn read_retrieve(body: &mut In, user: &Bare, from: u32) -> Result<Retrieve, Unreadable> {
    let asker = read_asker(body, from)?;
    if asker.user != *user {
        return Err(Unreadable("somebody else's messages"));
    }
    let ask = match body.byte()? {
        0 => Ask::Count,
        1 => Ask::List,
        2 => Ask::Fetch,
        3 => Ask::Purge,
        ask @ (4 | 5) => {
            let ids = read_ids(body)?;
            if ids.len() > MAX_ITEMS {
                return Err(Unreadable("a request names too many messages"));
            }
            if ask == 4 { Ask::View(ids) } else { Ask::Remove(ids) }
        }
        _ => return Err(Unreadable("an unknown request")),
    };
    Ok(Retrieve { asker, ask, batch_bytes: read_batch_bytes(body)? })
}

/// Without the link's node: see [`write_link`].
pub(super) fn write_asker(out: &mut Out, asker: &Asker) {
    number(out, u64::from(asker.link.number()));
    text(out, &asker.host);
    text(out, &asker.request);
    text(out, &asker.name);
    text(out, &asker.user);
    text(out, &asker.jid);
    text(out, &asker.id);
}

pub(super) fn read_asker(body: &mut In, from: u32) -> Result<Asker, Unreadable> {
    Ok(Asker {
        link: read_link(body, from)?,
        host: body.text()?,
        request: body.string()?,
        name: body.text()?,
        user: body.text()?,
        jid: body.string()?,
        id: body.string()?,
    })
}
