//! Between messages and the rows that hold them.

use bytes::Bytes;
use entities::offline_message::Model;
use sea_orm::Value;

use super::job::NewMessage;
use super::message::StoredMessage;
use crate::stanza::MessageType;
use crate::time::Timestamp;
use crate::words::{Expiry, MessageId};

/// Bytes of a bare JID at most (RFC 7622 section 3.1).
const BARE_JID: usize = 2047;
/// Bytes of a full JID at most.
const FULL_JID: usize = 3071;
/// Bytes of a key at most.
const KEY: usize = 255;

/// Why a message can't be stored in any database, if so.
pub(super) fn flaw(message: &NewMessage) -> Option<&'static str> {
    if message.recipient.len() > BARE_JID {
        Some("the recipient is longer than 2047 bytes")
    } else if message.sender.len() > FULL_JID {
        Some("the sender is longer than 3071 bytes")
    } else if message.key.len() > KEY {
        Some("the key is longer than 255 bytes")
    } else {
        None
    }
}

/// The values of a new row, in the order of the columns.
pub(super) fn values(message: &NewMessage, now: Timestamp) -> [Value; 13] {
    let expiry = message.expiry;
    [
        (&*message.recipient).into(),
        message.id.0.into(),
        (&*message.key).into(),
        message.sender.as_str().into(),
        kind_number(message.kind).into(),
        i64::try_from(message.stanza.len()).unwrap_or(i64::MAX).into(),
        message.stored_at.as_micros().into(),
        now.as_micros().into(),
        message.archived.into(),
        expiry.map(|expiry| expiry.at.as_micros()).into(),
        expiry.map(|expiry| i32::from(expiry.rule)).into(),
        message.met_rule.map(i32::from).into(),
        message.stanza.to_vec().into(),
    ]
}

/// The message in a row; none if the row makes no sense.
pub(super) fn message(row: Model) -> Option<StoredMessage> {
    let expiry = match (row.expires_at, row.expire_rule) {
        (Some(at), Some(rule)) => {
            Some(Expiry { at: Timestamp::from_micros(at), rule: u16::try_from(rule).ok()? })
        }
        _ => None,
    };
    Some(StoredMessage {
        id: MessageId(row.id),
        key: row.key.into(),
        sender: row.sender,
        kind: kind_of(row.kind)?,
        stored_at: Timestamp::from_micros(row.stored_at),
        archived: row.archived,
        expiry,
        met_rule: row.met_rule.map(u16::try_from).transpose().ok()?,
        stanza: Bytes::from(row.stanza),
    })
}

fn kind_number(kind: MessageType) -> i32 {
    match kind {
        MessageType::Normal => 0,
        MessageType::Chat => 1,
        MessageType::Groupchat => 2,
        MessageType::Headline => 3,
        MessageType::Error => 4,
    }
}

fn kind_of(number: i32) -> Option<MessageType> {
    Some(match number {
        0 => MessageType::Normal,
        1 => MessageType::Chat,
        2 => MessageType::Groupchat,
        3 => MessageType::Headline,
        4 => MessageType::Error,
        _ => return None,
    })
}
