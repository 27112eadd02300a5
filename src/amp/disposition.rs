//! What would happen to a message without rules (XEP-0079 section 2.2.2), found without
//! doing it: RFC 6121 section 8.5 for sessions, XEP-0160 for those who are away.

use crate::stanza::MessageType;

/// The default behaviour for one message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Disposition<'a> {
    /// Written to these sessions at once. Never empty.
    Direct {
        /// Their resources, as in [`Facts::sessions`].
        resources: Vec<&'a str>,
    },
    /// Routed to the recipient's own server (the sender's leg).
    NextHop,
    /// Kept until the recipient comes back.
    Stored,
    /// Neither delivered nor kept.
    None,
    /// Sent on to another XMPP address.
    Forward,
    /// Sent through a gateway to a system that is not XMPP.
    Gateway,
}

/// What is known about a message and its recipient when the decision is made.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Whether the recipient's account exists.
    pub account: bool,
    /// The resource that the message is addressed to; none for a bare JID.
    pub to_resource: Option<&'a str>,
    /// The recipient's available sessions.
    pub sessions: &'a [Session],
    /// The message's type.
    pub kind: MessageType,
    /// Whether type, content and hints let it be kept for someone who is away
    /// (XEP-0160 section 3, XEP-0334). For an error: it is a reply with `<amp status=''/>`.
    pub storable: bool,
    /// Whether the recipient's quota has room for one more.
    pub room_left: bool,
    /// What comes for the recipient is sent on to another XMPP address, and no session here
    /// gets it.
    pub forwards_to: bool,
    /// The recipient lies behind a gateway, and what comes for him goes there.
    pub gateway: bool,
}

/// An available session of the recipient.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// Its resource.
    pub resource: String,
    /// The priority of its presence.
    pub priority: i8,
    /// Its connection is gone but may be resumed (XEP-0198). It counts as available.
    pub hibernating: bool,
}

/// What would happen to the message by default.
///
/// - One whose messages are sent on: there, whether he has an account and sessions or not.
/// - A full JID whose session is available: that session, whatever its priority.
/// - A bare JID, or a full JID whose session is gone: chat and normal messages go to the
///   sessions that share the highest priority, if it is not negative; headlines for a bare
///   JID to all whose priority is not negative.
/// - Otherwise it is kept if it may be kept and there is room, or comes to nothing.
///   Headlines and errors for a session that is gone come to nothing, but an error that
///   may be kept, which is a reply about rules, goes the way of a normal message.
/// - Group chat goes to its own session or nowhere; its rules are not evaluated anyway.
pub fn default_disposition<'a>(facts: &Facts<'a>) -> Disposition<'a> {
    if facts.forwards_to {
        return Disposition::Forward;
    }
    if facts.gateway {
        return Disposition::Gateway;
    }
    if !facts.account {
        return Disposition::None;
    }
    if let Some(session) = intended(facts) {
        return Disposition::Direct { resources: vec![&session.resource] };
    }
    let resources = match facts.kind {
        MessageType::Chat | MessageType::Normal => top(facts.sessions),
        MessageType::Error if facts.storable => top(facts.sessions),
        MessageType::Headline if facts.to_resource.is_none() => non_negative(facts.sessions),
        MessageType::Headline | MessageType::Error | MessageType::Groupchat => {
            return Disposition::None;
        }
    };
    if !resources.is_empty() {
        Disposition::Direct { resources }
    } else if facts.storable && facts.room_left {
        Disposition::Stored
    } else {
        Disposition::None
    }
}

/// The session that the message is addressed to, if it is available.
fn intended<'a>(facts: &Facts<'a>) -> Option<&'a Session> {
    let resource = facts.to_resource?;
    facts.sessions.iter().find(|session| session.resource == resource)
}

/// Those who share the highest priority, if it is not negative.
fn top(sessions: &[Session]) -> Vec<&str> {
    let highest = sessions.iter().map(|s| s.priority).max().unwrap_or(-1);
    with_priority(sessions, |priority| priority >= 0 && priority == highest)
}

fn non_negative(sessions: &[Session]) -> Vec<&str> {
    with_priority(sessions, |priority| priority >= 0)
}

fn with_priority(sessions: &[Session], wanted: impl Fn(i8) -> bool) -> Vec<&str> {
    sessions.iter().filter(|s| wanted(s.priority)).map(|s| s.resource.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use MessageType::{Chat, Error, Groupchat, Headline, Normal};

    use super::*;

    fn session(resource: &str, priority: i8) -> Session {
        Session { resource: resource.into(), priority, hibernating: false }
    }

    fn facts<'a>(
        kind: MessageType,
        to_resource: Option<&'a str>,
        sessions: &'a [Session],
    ) -> Facts<'a> {
        Facts {
            account: true,
            to_resource,
            sessions,
            kind,
            storable: true,
            room_left: true,
            forwards_to: false,
            gateway: false,
        }
    }

    fn direct<'a>(resources: &[&'a str]) -> Disposition<'a> {
        Disposition::Direct { resources: resources.to_vec() }
    }

    #[test]
    fn r19_o1_by_type_address_and_sessions() {
        let home = &[
            session("phone", 5),
            session("tablet", 5),
            session("desk", 1),
            session("bot", -1),
        ][..];
        let bot = &[session("bot", -1)][..];
        let away = &[][..];
        use Disposition::{None as Nothing, Stored};
        let table: &[(MessageType, Option<&str>, &[Session], Disposition)] = &[
            (Chat, None, home, direct(&["phone", "tablet"])),
            (Normal, None, home, direct(&["phone", "tablet"])),
            (Headline, None, home, direct(&["phone", "tablet", "desk"])),
            (Error, None, home, direct(&["phone", "tablet"])),
            (Chat, Some("desk"), home, direct(&["desk"])),
            (Headline, Some("desk"), home, direct(&["desk"])),
            (Error, Some("desk"), home, direct(&["desk"])),
            (Groupchat, Some("desk"), home, direct(&["desk"])),
            (Chat, Some("bot"), home, direct(&["bot"])),
            (Chat, Some("gone"), home, direct(&["phone", "tablet"])),
            (Normal, Some("gone"), home, direct(&["phone", "tablet"])),
            (Headline, Some("gone"), home, Nothing),
            (Error, Some("gone"), home, direct(&["phone", "tablet"])),
            (Groupchat, Some("gone"), home, Nothing),
            (Groupchat, None, home, Nothing),
            (Chat, None, bot, Stored),
            (Chat, Some("gone"), bot, Stored),
            (Headline, None, bot, Stored),
            (Chat, None, away, Stored),
            (Normal, None, away, Stored),
            (Normal, Some("gone"), away, Stored),
            (Error, Some("gone"), away, Stored),
            (Headline, Some("gone"), away, Nothing),
            (Groupchat, None, away, Nothing),
        ];
        for (kind, to, sessions, expected) in table {
            let facts = facts(*kind, *to, sessions);
            assert_eq!(default_disposition(&facts), *expected, "{facts:?}");
        }
    }

    #[test]
    fn o2_o9_what_may_not_be_kept_comes_to_nothing() {
        for kind in [Chat, Normal, Headline, Error] {
            for to in [None, Some("gone")] {
                for (storable, room_left) in [(false, true), (true, false), (false, false)] {
                    let facts = Facts { storable, room_left, ..facts(kind, to, &[]) };
                    assert_eq!(default_disposition(&facts), Disposition::None, "{facts:?}");
                }
            }
        }
    }

    #[test]
    fn errors_that_are_no_notice_reach_their_session_or_nothing() {
        let home = [session("phone", 5)];
        for (to, expected) in [
            (None, Disposition::None),
            (Some("gone"), Disposition::None),
            (Some("phone"), direct(&["phone"])),
        ] {
            let facts = Facts { storable: false, ..facts(Error, to, &home) };
            assert_eq!(default_disposition(&facts), expected);
        }
    }

    #[test]
    fn hibernating_sessions_are_available() {
        let asleep = [Session { hibernating: true, ..session("phone", 0) }];
        for to in [None, Some("phone"), Some("gone")] {
            assert_eq!(default_disposition(&facts(Chat, to, &asleep)), direct(&["phone"]));
        }
    }

    #[test]
    fn r33_elsewhere_and_nowhere() {
        let home = [session("phone", 5)];
        let base = facts(Chat, Some("phone"), &home);
        for (facts, expected) in [
            (Facts { account: false, ..base }, Disposition::None),
            (Facts { account: false, forwards_to: true, ..base }, Disposition::Forward),
            (Facts { account: false, gateway: true, ..base }, Disposition::Gateway),
            (Facts { forwards_to: true, ..base }, Disposition::Forward),
            (Facts { gateway: true, ..base }, Disposition::Gateway),
            (Facts { forwards_to: true, room_left: false, ..base }, Disposition::Forward),
            (Facts { gateway: true, storable: false, ..base }, Disposition::Gateway),
        ] {
            assert_eq!(default_disposition(&facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn r43_resources_are_matched_whole() {
        let home = [session("home", -1), session("home/laptop", -1), session("Home", -1)];
        for to in ["hom", "home/", "homeboy", "HOME", ""] {
            assert_eq!(
                default_disposition(&facts(Chat, Some(to), &home)),
                Disposition::Stored,
                "{to}"
            );
        }
    }
}
