//! A user's request for his stored messages (XEP-0013, section 6 of the intercept
//! protocol): read, and its answer written.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::ns;
use crate::shard::{Answer, Ask, Asker, Listed, MAX_ITEMS, Refused, Retrieved};
use crate::words::{Bare, MessageId};
use crate::xml::{Element, escape_attribute, escape_text};

/// A `<retrieve/>` that an interceptor sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// The retrieval's name for ever.
    pub name: Arc<str>,
    /// Whose messages.
    pub user: Bare,
    /// The full JID of the session that asks.
    pub jid: String,
    /// The id of the user's request.
    pub id: String,
    /// What he asks for, or why that is refused.
    pub ask: Result<Ask, Refused>,
}

/// Reads a `<retrieve/>` of the interceptor of `host`.
///
/// # Errors
///
/// It is not what an interceptor of that host may send; the text says why.
pub fn read(retrieve: &Element, host: &str) -> Result<Request, &'static str> {
    let name = retrieve.attr("session").filter(|name| !name.is_empty());
    let name = name.ok_or("it has no session")?;
    let jid = retrieve.attr("jid").ok_or("it has no jid")?;
    let (user, resource) = jid.split_once('/').ok_or("its jid is not a full one")?;
    let (local, domain) = user.split_once('@').ok_or("its jid is no user's")?;
    if local.is_empty() || resource.is_empty() || domain != host {
        return Err("its jid is not of a user of that host");
    }
    let forwarded = retrieve.child("forwarded", ns::FORWARD).ok_or("nothing is forwarded in it")?;
    let iq = forwarded.child("iq", ns::CLIENT).ok_or("no iq is forwarded in it")?;
    Ok(Request {
        name: name.into(),
        user: user.into(),
        jid: jid.to_owned(),
        id: iq.attr("id").unwrap_or_default().to_owned(),
        ask: ask(iq, user, jid),
    })
}

/// What the user's own request asks for. The interceptor answers for who he is; a request
/// that says something else is refused all the same (F5, F9).
fn ask(iq: &Element, user: &str, jid: &str) -> Result<Ask, Refused> {
    let of_himself =
        iq.attr("to").is_none_or(|to| to == user) && iq.attr("from").is_none_or(|from| from == jid);
    if !of_himself {
        return Err(Refused::FORBIDDEN);
    }
    let get = match iq.attr("type") {
        Some("get") => true,
        Some("set") => false,
        _ => return Err(Refused::bad_request("A request has the type get or set")),
    };
    let asks_node = |ns| {
        let query = iq.child("query", ns);
        get && query.is_some_and(|query| query.attr("node") == Some(ns::OFFLINE))
    };
    if let Some(offline) = iq.child("offline", ns::OFFLINE) {
        offline_of(offline, get)
    } else if asks_node(ns::DISCO_INFO) {
        Ok(Ask::Count)
    } else if asks_node(ns::DISCO_ITEMS) {
        Ok(Ask::List)
    } else {
        Err(Refused::NOT_IMPLEMENTED)
    }
}

/// Sections 2.4 to 2.7: some items, or `<fetch/>`, or `<purge/>`. What changes nothing may
/// be a set too, for clients ask so; what removes must be one.
fn offline_of(offline: &Element, get: bool) -> Result<Ask, Refused> {
    let own: Vec<&Element> = offline.children.iter().filter(|c| c.ns == ns::OFFLINE).collect();
    let [first, rest @ ..] = own.as_slice() else {
        return Err(Refused::bad_request("It names no item, and neither fetch nor purge"));
    };
    let ask = match first.name.as_str() {
        "fetch" if rest.is_empty() => Ask::Fetch,
        "purge" if rest.is_empty() => Ask::Purge,
        "item" if own.iter().all(|c| c.name == "item") => items(&own)?,
        "fetch" | "purge" | "item" => {
            return Err(Refused::bad_request("It asks for several things at once"));
        }
        _ => return Err(Refused::bad_request("It holds neither item, fetch nor purge")),
    };
    if get && matches!(ask, Ask::Remove(_) | Ask::Purge) {
        return Err(Refused::bad_request("What removes messages has the type set"));
    }
    Ok(ask)
}

fn items(items: &[&Element]) -> Result<Ask, Refused> {
    if items.len() > MAX_ITEMS {
        return Err(Refused::TOO_MANY_ITEMS);
    }
    let all = |action| items.iter().all(|item| item.attr("action") == Some(action));
    let make = if all("view") {
        Ask::View
    } else if all("remove") {
        Ask::Remove
    } else {
        return Err(Refused::bad_request("Its items have one action, view or remove"));
    };
    let nodes: Option<Vec<&str>> = items.iter().map(|item| item.attr("node")).collect();
    let nodes = nodes.ok_or(Refused::bad_request("An item has no node"))?;
    // What is not one of our names is the name of nothing.
    let ids: Result<Vec<MessageId>, _> = nodes.into_iter().map(str::parse).collect();
    ids.map(make).map_err(|_| Refused::NOT_FOUND)
}

/// Writes the IQ that answers the user.
pub fn reply(out: &mut String, retrieved: &Retrieved) {
    let Retrieved { asker, answer } = retrieved;
    let kind = if matches!(answer, Answer::Refused(_)) { "error" } else { "result" };
    // reason: writing to a String cannot fail, here and below
    let _ = write!(
        out,
        "<iq xmlns='{}' type='{kind}' id='{}' from='{}' to='{}'>",
        ns::CLIENT,
        escape_attribute(&asker.id),
        escape_attribute(&asker.user),
        escape_attribute(&asker.jid)
    );
    match answer {
        Answer::Count(messages) => count(out, *messages),
        Answer::List(listed) => list(out, asker, listed),
        Answer::Done => {}
        Answer::Refused(refused) => error(out, refused),
    }
    out.push_str("</iq>");
}

/// Section 2.2.
fn count(out: &mut String, messages: u64) {
    let _ = write!(
        out,
        "<query xmlns='{}' node='{offline}'>\
         <identity category='automation' type='message-list'/><feature var='{offline}'/>\
         <x xmlns='{}' type='result'><field var='FORM_TYPE' type='hidden'>\
         <value>{offline}</value></field><field var='number_of_messages'>\
         <value>{messages}</value></field></x></query>",
        ns::DISCO_INFO,
        ns::FORMS,
        offline = ns::OFFLINE
    );
}

/// Section 2.3.
fn list(out: &mut String, asker: &Asker, listed: &[Listed]) {
    let _ = write!(out, "<query xmlns='{}' node='{}'>", ns::DISCO_ITEMS, ns::OFFLINE);
    let user = escape_attribute(&asker.user);
    for Listed { id, sender } in listed {
        let sender = escape_attribute(sender);
        let _ = write!(out, "<item jid='{user}' node='{id}' name='{sender}'/>");
    }
    out.push_str("</query>");
}

fn error(out: &mut String, refused: &Refused) {
    let Refused { kind, condition, text } = refused;
    let _ = write!(
        out,
        "<error type='{kind}'><{condition} xmlns='{stanzas}'/>\
         <text xmlns='{stanzas}' xml:lang='en'>{}</text></error>",
        escape_text(text),
        stanzas = ns::STANZAS
    );
}

#[cfg(test)]
mod tests;
