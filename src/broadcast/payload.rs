//! What a broadcast says: a message without addresses.

use crate::ns;
use crate::time::Timestamp;
use crate::xml::{Element, escape_attribute, escape_text};

/// Bytes of a payload at most. Whether the server takes that much is looked at too.
pub const MAX_PAYLOAD: usize = 256 * 1024;

/// Levels of elements at most: far more than a message has, and less than servers take.
const MAX_DEPTH: usize = 32;

const HEAD: &str = "<message xmlns='jabber:client'";
const TAIL: &str = "</message>";

/// A message that has everything but addresses, id and rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payload(String);

/// Why a text is no payload.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PayloadError {
    /// Nothing would be sent.
    #[error("it is empty: give it a body, or elements")]
    Empty,
    /// It is more than [`MAX_PAYLOAD`].
    #[error("it is larger than {} KiB", MAX_PAYLOAD / 1024)]
    TooLarge,
    /// It has more levels of elements than a message may have.
    #[error("it has more than {MAX_DEPTH} levels of elements")]
    TooDeep,
    /// It can't be read.
    #[error("{0}; namespaces must be declared on the elements that use them")]
    Xml(String),
    /// It is another element.
    #[error("it must be one <message/>")]
    NoMessage,
    /// An attribute that is not its to say.
    #[error("<message/> may have the attributes type and xml:lang, and has '{0}'")]
    Attribute(String),
    /// Other types are not stored.
    #[error("the type must be 'normal' or 'chat', and is '{0}'")]
    Type(String),
    /// The broadcast has its own.
    #[error("it must have no <amp/>: the time of expiry says that")]
    Rules,
}

impl Payload {
    /// A message of text.
    ///
    /// # Errors
    ///
    /// The body is empty, or all is too large.
    pub fn text(subject: Option<&str>, body: &str) -> Result<Self, PayloadError> {
        if body.trim().is_empty() {
            return Err(PayloadError::Empty);
        }
        let subject = subject.filter(|subject| !subject.is_empty());
        let subject = subject.map(|s| format!("<subject>{}</subject>", escape_text(s)));
        let inside = format!("{}<body>{}</body>", subject.unwrap_or_default(), escape_text(body));
        Self::sized(format!("{HEAD}>{inside}{TAIL}"))
    }

    /// A `<message/>` as somebody wrote it, in the namespace `jabber:client` or in none.
    ///
    /// # Errors
    ///
    /// It is not one, or says what a payload may not.
    pub fn stanza(text: &str) -> Result<Self, PayloadError> {
        let text = without_declaration(text.trim());
        if text.len() > MAX_PAYLOAD {
            return Err(PayloadError::TooLarge);
        }
        let xml = |error: crate::xml::XmlError| PayloadError::Xml(error.to_string());
        let element = Element::parse(text).map_err(xml)?;
        if element.name != "message" || !(element.ns.is_empty() || element.ns == ns::CLIENT) {
            return Err(PayloadError::NoMessage);
        }
        let mut attributes = String::new();
        for (name, value) in &element.attrs {
            match (name.as_str(), value.as_str()) {
                ("type", "normal") => {}
                ("type", "chat") => attributes.push_str(" type='chat'"),
                ("type", other) => return Err(PayloadError::Type(other.to_owned())),
                ("xml:lang", lang) => {
                    attributes.extend([" xml:lang='", &escape_attribute(lang), "'"]);
                }
                (other, _) => return Err(PayloadError::Attribute(other.to_owned())),
            }
        }
        let inside = inside(text).ok_or(PayloadError::Empty)?;
        let payload = Self::sized(format!("{HEAD}{attributes}>{inside}{TAIL}"))?;
        // Once more as it is sent: what the start tag declared is gone.
        let element = Element::parse(&payload.0).map_err(xml)?;
        if element.children.is_empty() {
            return Err(PayloadError::Empty);
        }
        if element.child("amp", ns::AMP).is_some() {
            return Err(PayloadError::Rules);
        }
        if depth(&element) > MAX_DEPTH {
            return Err(PayloadError::TooDeep);
        }
        Ok(payload)
    }

    /// What stands for a message that can't be read any more; it is never sent.
    pub(super) fn nothing() -> Self {
        Payload(format!("{HEAD}>{TAIL}"))
    }

    fn sized(text: String) -> Result<Self, PayloadError> {
        if text.len() > MAX_PAYLOAD { Err(PayloadError::TooLarge) } else { Ok(Payload(text)) }
    }

    /// As text that [`Payload::stanza`] takes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The message to one recipient, with the rule that ends it.
    pub fn message(&self, from: &str, to: &str, id: &str, expires_at: Timestamp) -> String {
        let rest = self.0.strip_prefix(HEAD).unwrap_or_default();
        let rest = rest.strip_suffix(TAIL).unwrap_or_default();
        format!(
            "{HEAD} from='{}' to='{}' id='{}'{rest}<amp xmlns='{}'><rule action='drop' \
             condition='expire-at' value='{expires_at}'/></amp>{TAIL}",
            escape_attribute(from),
            escape_attribute(to),
            escape_attribute(id),
            ns::AMP,
        )
    }
}

/// Without `<?xml ...?>`, which a file may have and a stanza may not.
fn without_declaration(text: &str) -> &str {
    let rest = text.strip_prefix("<?xml").and_then(|rest| rest.split_once("?>"));
    rest.map_or(text, |(_, rest)| rest.trim_start())
}

/// What is between the tags of a well-formed element; none if it is one empty tag.
fn inside(text: &str) -> Option<&str> {
    let mut quote = None;
    let end = text.char_indices().find(|(_, c)| match (quote, c) {
        (None, '>') => true,
        (None, '\'' | '"') => {
            quote = Some(*c);
            false
        }
        (Some(open), c) if open == *c => {
            quote = None;
            false
        }
        _ => false,
    })?;
    let (start, rest) = text.split_at(end.0 + 1);
    if start.ends_with("/>") {
        return None;
    }
    Some(&rest[..rest.rfind("</")?])
}

fn depth(element: &Element) -> usize {
    1 + element.children.iter().map(depth).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        let payload = Payload::text(Some("a<b"), "x & y").unwrap();
        let message = payload.message("h", "o'neil@h", "k-1", Timestamp::from_micros(0));
        let element = Element::parse(&message).unwrap();
        assert_eq!(element.attr("to"), Some("o'neil@h"));
        assert_eq!(element.child("body", ns::CLIENT).unwrap().text, "x & y");
        assert_eq!(element.child("subject", ns::CLIENT).unwrap().text, "a<b");
        let rule = &element.child("amp", ns::AMP).unwrap().children[0];
        assert_eq!(rule.attr("value"), Some("1970-01-01T00:00:00.000Z"));
        assert_eq!(Payload::stanza(payload.as_str()), Ok(payload));
        assert_eq!(Payload::text(None, " \n"), Err(PayloadError::Empty));
    }

    #[test]
    fn a_stanza_keeps_its_inside_as_it_is() {
        let xml = "<?xml version='1.0'?>\n<message type='chat' xml:lang='d\"e'>\
             <body>a > b</body><html xmlns='u'>one <b>two</b> three</html></message>\n";
        let payload = Payload::stanza(xml).unwrap();
        assert_eq!(
            payload.as_str(),
            "<message xmlns='jabber:client' type='chat' xml:lang='d&quot;e'>\
             <body>a > b</body><html xmlns='u'>one <b>two</b> three</html></message>"
        );
        assert_eq!(Payload::stanza(payload.as_str()), Ok(payload));
    }

    #[test]
    fn what_is_no_payload_is_refused() {
        let deep = format!("<message>{}{}</message>", "<a>".repeat(32), "</a>".repeat(32));
        let large = format!("<message><body>{}</body></message>", "x".repeat(MAX_PAYLOAD));
        for (text, error) in [
            ("<message/>", PayloadError::Empty),
            ("<message type='chat'> </message>", PayloadError::Empty),
            ("<presence/>", PayloadError::NoMessage),
            ("<message xmlns='u'><body/></message>", PayloadError::NoMessage),
            ("<message to='a@b'><body/></message>", PayloadError::Attribute("to".into())),
            ("<message type='headline'><body/></message>", PayloadError::Type("headline".into())),
            (
                "<message><amp xmlns='http://jabber.org/protocol/amp'/></message>",
                PayloadError::Rules,
            ),
            (&deep, PayloadError::TooDeep),
            (&large, PayloadError::TooLarge),
        ] {
            assert_eq!(Payload::stanza(text), Err(error), "{text:.80}");
        }
        for text in
            ["", "hello", "<message><body></message>", "<message xmlns:a='u'><a:x/></message>"]
        {
            assert!(matches!(Payload::stanza(text), Err(PayloadError::Xml(_))), "{text}");
        }
    }
}
