//! What the sender is told (XEP-0079 sections 2.2.5, 3.4 and 6).
//!
//! Every reply is a whole `<message xmlns='jabber:client'/>` from the host, with the
//! original `id` and nothing of the original but its rules.

use super::check::{MAX_ECHO, MAX_RULES, Refusal, rule_elements};
use super::error::StanzaError;
use super::rule::{Action, Rule, RuleSet};
use crate::ns;
use crate::xml::{Element, escape_attribute};

/// Whom a reply goes to, and about which message.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The virtual host that answers.
    pub host: &'a str,
    /// The original sender's full JID.
    pub sender: &'a str,
    /// The recipient as the message was addressed.
    pub recipient: &'a str,
    /// The message's id.
    pub id: Option<&'a str>,
}

/// The error for rules that were not accepted (XEP-0079 sections 2.2.1 and 6).
///
/// `amp`: the message's `<amp/>` elements as they were checked. The first one's rules are
/// repeated, at most [`MAX_RULES`] of them and [`MAX_ECHO`] bytes of an attribute.
pub fn refusal_reply(refusal: &Refusal, envelope: &Envelope, amp: &[Element]) -> String {
    let mut out = open(envelope.host, envelope.sender, envelope.id, true);
    if let Some(amp) = amp.first() {
        out.push_str("<amp");
        attribute(&mut out, "xmlns", ns::AMP);
        if let Some(per_hop) = amp.attr("per-hop") {
            attribute(&mut out, "per-hop", cut(per_hop));
        }
        out.push('>');
        for rule in echoed(amp) {
            rule.write(&mut out);
        }
        out.push_str("</amp>");
    }
    error(&mut out, refusal.error(), |out| {
        let (Some((name, is_named)), Some(amp)) = (refusal.named(), amp.first()) else {
            return;
        };
        element(out, name, ns::AMP, |out| {
            for (_, rule) in echoed(amp).enumerate().filter(|(number, _)| is_named(*number)) {
                rule.write(out);
            }
        });
    });
    out.push_str("</message>");
    out
}

/// What the action of a met rule sends to the sender (XEP-0079 section 3.4): an alert, an
/// error or a notification. None for `drop`, and for a number that no rule has.
pub fn rule_reply(rules: &RuleSet, number: usize, envelope: &Envelope) -> Option<String> {
    let rule = rules.get(number).filter(|rule| rule.action.replies())?;
    let is_error = rule.action == Action::Error;
    let mut out = open(envelope.host, envelope.sender, envelope.id, is_error);
    out.push_str("<amp");
    attribute(&mut out, "xmlns", ns::AMP);
    attribute(&mut out, "status", rule.action.name());
    attribute(&mut out, "from", envelope.sender);
    attribute(&mut out, "to", envelope.recipient);
    out.push('>');
    RuleText::from(rule).write(&mut out);
    out.push_str("</amp>");
    if is_error {
        error(&mut out, StanzaError::UNDEFINED_CONDITION, |out| {
            element(out, "failed-rules", ns::AMP_ERRORS, |out| RuleText::from(rule).write(out));
        });
    }
    out.push_str("</message>");
    Some(out)
}

/// A plain stanza error for a message, `from` the address that could not take it.
pub fn bounce(from: &str, to: &str, id: Option<&str>, condition: StanzaError) -> String {
    let mut out = open(from, to, id, true);
    error(&mut out, condition, |_| {});
    out.push_str("</message>");
    out
}

/// A rule's attributes as they were written.
struct RuleText<'a> {
    action: Option<&'a str>,
    condition: Option<&'a str>,
    value: Option<&'a str>,
}

impl<'a> From<&'a Rule> for RuleText<'a> {
    fn from(rule: &'a Rule) -> Self {
        RuleText {
            action: Some(rule.action.name()),
            condition: Some(rule.condition.name()),
            value: Some(&rule.value),
        }
    }
}

impl<'a> From<&'a Element> for RuleText<'a> {
    fn from(rule: &'a Element) -> Self {
        let text = |name| rule.attr(name).map(cut);
        RuleText { action: text("action"), condition: text("condition"), value: text("value") }
    }
}

impl RuleText<'_> {
    fn write(&self, out: &mut String) {
        out.push_str("<rule");
        for (name, value) in
            [("action", self.action), ("condition", self.condition), ("value", self.value)]
        {
            if let Some(value) = value {
                attribute(out, name, value);
            }
        }
        out.push_str("/>");
    }
}

/// The rules to be repeated, in the order that numbers them.
fn echoed(amp: &Element) -> impl Iterator<Item = RuleText<'_>> {
    rule_elements(amp).take(MAX_RULES).map(RuleText::from)
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_ECHO)]
}

/// The start tag of a message. An empty id is no id.
fn open(from: &str, to: &str, id: Option<&str>, is_error: bool) -> String {
    let mut out = String::with_capacity(512);
    out.push_str("<message xmlns='jabber:client'");
    attribute(&mut out, "from", from);
    attribute(&mut out, "to", to);
    if let Some(id) = id.filter(|id| !id.is_empty()) {
        attribute(&mut out, "id", id);
    }
    if is_error {
        attribute(&mut out, "type", "error");
    }
    out.push('>');
    out
}

/// An `<error/>` with its condition and what `inside` adds.
fn error(out: &mut String, error: StanzaError, inside: impl FnOnce(&mut String)) {
    out.push_str("<error");
    attribute(out, "type", error.kind);
    if let Some(code) = error.code {
        attribute(out, "code", &code.to_string());
    }
    out.push('>');
    out.push('<');
    out.push_str(error.condition);
    attribute(out, "xmlns", ns::STANZAS);
    out.push_str("/>");
    inside(out);
    out.push_str("</error>");
}

/// `<name xmlns='ns'>...</name>`
fn element(out: &mut String, name: &str, ns: &str, inside: impl FnOnce(&mut String)) {
    out.push('<');
    out.push_str(name);
    attribute(out, "xmlns", ns);
    out.push('>');
    inside(out);
    out.push_str("</");
    out.push_str(name);
    out.push('>');
}

fn attribute(out: &mut String, name: &str, value: &str) {
    out.push(' ');
    out.push_str(name);
    out.push_str("='");
    out.push_str(&escape_attribute(value));
    out.push('\'');
}

#[cfg(test)]
mod tests;
