//! What a node says to the interceptors, as text.

use std::fmt::Write as _;

use crate::amp::{SecurityLevel, support};
use crate::ns;
use crate::shard::{Do, Errand, HandOver, Response, Retrieved, Send, Verdict};
use crate::xml::{escape_attribute, escape_text};

use super::keep::Redirect;

/// One link's addresses.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The component, escaped.
    component: String,
}

impl Writer {
    /// Writes as `component`.
    pub fn new(component: &str) -> Self {
        Writer { component: escape_attribute(component).into_owned() }
    }

    fn open(&self, out: &mut String, name: &str, host: &str, attributes: &str) {
        // reason: writing to a String cannot fail
        let _ = write!(
            out,
            "<{name} from='{}' to='{}'{attributes}>",
            self.component,
            escape_attribute(host)
        );
    }

    /// A `<verdicts/>` message; all verdicts are of one host.
    pub fn verdicts(&self, out: &mut String, host: &str, verdicts: &[Verdict]) {
        self.open(out, "message", host, "");
        let _ = write!(out, "<verdicts xmlns='{}'>", ns::INTERCEPT);
        for verdict in verdicts {
            let _ = write!(
                out,
                "<verdict key='{}' stage='{}' do='{}'",
                escape_attribute(&verdict.key),
                verdict.stage.as_str(),
                verdict.what.as_str()
            );
            if verdict.silent && verdict.what == Do::Deliver {
                out.push_str(" silent='true'");
            }
            if verdict.sends.is_empty() {
                out.push_str("/>");
                continue;
            }
            out.push('>');
            for send in &verdict.sends {
                let _ = write!(
                    out,
                    "<send><forwarded xmlns='{}'>{send}</forwarded></send>",
                    ns::FORWARD
                );
            }
            out.push_str("</verdict>");
        }
        out.push_str("</verdicts></message>");
    }

    /// A `<hand-over/>` message.
    pub fn hand_over(&self, out: &mut String, hand_over: &HandOver) {
        self.open(out, "message", &hand_over.host, "");
        let _ = write!(
            out,
            "<hand-over xmlns='{}' session='{}' batch='{}'{}>",
            ns::INTERCEPT,
            escape_attribute(&hand_over.session),
            hand_over.batch,
            if hand_over.view { " view='true'" } else { "" }
        );
        for item in &hand_over.items {
            let _ = write!(
                out,
                "<item id='{}'><forwarded xmlns='{}'><delay xmlns='{}' stamp='{}'/>",
                item.id,
                ns::FORWARD,
                ns::DELAY,
                item.stamp
            );
            out.push_str(&String::from_utf8_lossy(&item.stanza));
            out.push_str("</forwarded></item>");
        }
        out.push_str("</hand-over></message>");
    }

    /// A `<handed-over/>` message.
    pub fn handed_over(&self, out: &mut String, host: &str, session: &str, n: u64, count: u64) {
        self.open(out, "message", host, "");
        let _ = write!(
            out,
            "<handed-over xmlns='{}' session='{}' n='{n}' count='{count}'/></message>",
            ns::INTERCEPT,
            escape_attribute(session)
        );
    }

    /// A `<deleted/>` message.
    pub fn deleted(&self, out: &mut String, host: &str, session: &str, batch: u64) {
        self.open(out, "message", host, "");
        let _ = write!(
            out,
            "<deleted xmlns='{}' session='{}' batch='{batch}'/></message>",
            ns::INTERCEPT,
            escape_attribute(session)
        );
    }

    /// The greeting of a host, with the actions and conditions that are supported, and what it
    /// sends on: from a user to a user, or from its domain to a gateway's.
    pub fn greeting<'a>(
        &self,
        out: &mut String,
        host: &str,
        id: &str,
        node: &str,
        security: SecurityLevel,
        redirects: impl Iterator<Item = &'a Redirect>,
    ) {
        self.open(out, "iq", host, &format!(" type='set' id='{id}'"));
        let security = match security {
            SecurityLevel::Strict => "strict",
            SecurityLevel::Performance => "performance",
            SecurityLevel::None => "none",
        };
        let _ = write!(
            out,
            "<greeting xmlns='{}' version='1' node='{}' security='{security}' window='{}'>",
            ns::INTERCEPT,
            escape_attribute(node),
            super::window::INTERCEPTS
        );
        for action in support::actions() {
            let _ = write!(out, "<action name='{action}'/>");
        }
        for condition in support::conditions() {
            let _ = write!(out, "<condition name='{condition}'/>");
        }
        for Redirect { host: domain, from, to } in redirects {
            let name = if **domain == **from { "gateway" } else { "forward" };
            let (from, to) = (escape_attribute(from), escape_attribute(to));
            let _ = write!(out, "<{name} from='{from}' to='{to}'/>");
        }
        out.push_str("</greeting></iq>");
    }

    /// A `<send/>` request.
    pub fn send(&self, out: &mut String, host: &str, id: &str, send: &Send) {
        self.open(out, "iq", host, &format!(" type='set' id='{id}'"));
        let _ = write!(
            out,
            "<send xmlns='{}' key='{}' for='{}'><forwarded xmlns='{}'>{}</forwarded></send></iq>",
            ns::INTERCEPT,
            escape_attribute(&send.key),
            escape_attribute(&send.user),
            ns::FORWARD,
            send.stanza
        );
    }

    /// A request of a broadcast.
    pub fn ask(&self, out: &mut String, host: &str, id: &str, ask: &Errand) {
        match ask {
            Errand::Settle { key, to, again, stanza } => {
                self.open(out, "iq", host, &format!(" type='set' id='{id}'"));
                let _ = write!(
                    out,
                    "<send xmlns='{}' key='{}' for='{}' settle='true'{}>\
                     <forwarded xmlns='{}'>{stanza}</forwarded></send></iq>",
                    ns::INTERCEPT,
                    escape_attribute(key),
                    escape_attribute(to),
                    if *again { " again='true'" } else { "" },
                    ns::FORWARD,
                );
            }
            Errand::Accounts { after, max } => {
                self.open(out, "iq", host, &format!(" type='get' id='{id}'"));
                let _ = write!(
                    out,
                    "<accounts xmlns='{}' after='{}' max='{max}'/></iq>",
                    ns::INTERCEPT,
                    escape_attribute(after),
                );
            }
        }
    }

    /// The answer to a request of an interceptor.
    pub fn answer(&self, out: &mut String, answer: &Response) {
        let (host, id) = (&answer.host, &answer.request);
        match &answer.answer {
            Ok(inside) => {
                let id = escape_attribute(id);
                self.open(out, "iq", host, &format!(" type='result' id='{id}'"));
                out.extend([inside, "</iq>"]);
            }
            Err((kind, condition, text)) => {
                let id = escape_attribute(id);
                self.open(out, "iq", host, &format!(" type='error' id='{id}'"));
                let _ = write!(
                    out,
                    "<error type='{kind}'><{condition} xmlns='{}'/><text xmlns='{}'>{}</text></error></iq>",
                    ns::STANZAS,
                    ns::STANZAS,
                    escape_text(text),
                );
            }
        }
    }

    /// The answer to a `<retrieve/>` request: what the user is answered.
    pub fn retrieved(&self, out: &mut String, retrieved: &Retrieved) {
        let asker = &retrieved.asker;
        let id = escape_attribute(&asker.request);
        self.open(out, "iq", &asker.host, &format!(" type='result' id='{id}'"));
        let _ = write!(
            out,
            "<retrieve xmlns='{}' session='{}'><forwarded xmlns='{}'>",
            ns::INTERCEPT,
            escape_attribute(&asker.name),
            ns::FORWARD
        );
        super::retrieve::reply(out, retrieved);
        out.push_str("</forwarded></retrieve></iq>");
    }

    /// A ping (XEP-0199), to see whether the server still answers.
    pub fn ping(&self, out: &mut String, host: &str, id: &str) {
        self.open(out, "iq", host, &format!(" type='get' id='{id}'"));
        out.push_str("<ping xmlns='urn:xmpp:ping'/></iq>");
    }

    /// The empty result of an IQ.
    pub fn result(&self, out: &mut String, host: &str, id: &str) {
        self.open(out, "iq", host, &format!(" type='result' id='{}'", escape_attribute(id)));
        out.push_str("</iq>");
    }

    /// A stanza error that answers an IQ.
    pub fn error(&self, out: &mut String, host: &str, id: &str, kind: &str, condition: &str) {
        self.open(out, "iq", host, &format!(" type='error' id='{}'", escape_attribute(id)));
        let _ =
            write!(out, "<error type='{kind}'><{condition} xmlns='{}'/></error></iq>", ns::STANZAS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_says_what_the_host_sends_on() {
        let redirect = |from: &str, to: &str| Redirect {
            host: "h".into(),
            from: from.to_owned(),
            to: to.to_owned(),
        };
        let redirects = [redirect("b@h", "b@'other"), redirect("h", "gw.h")];
        let mut out = String::new();
        let writer = Writer::new("amp.h");
        writer.greeting(&mut out, "h", "g1", "n", SecurityLevel::Strict, redirects.iter());
        let end =
            "<forward from='b@h' to='b@&apos;other'/><gateway from='h' to='gw.h'/></greeting></iq>";
        assert!(out.ends_with(end), "{out}");
    }
}
