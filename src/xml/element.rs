//! A small tree, for what is not on the hot path: IQs, stream errors, rules.

use super::escape::{escape_attribute, escape_text};
use super::reader::{Reader, Token};
use crate::ns;

/// What the elements of one tree may take in memory, in bytes: a long namespace
/// inherited by a great many empty elements would take far more than its stanza has.
pub(crate) const MAX_TREE: usize = 8 << 20;

/// An element with its namespace resolved. Attributes keep their written names
/// (`xml:lang`); namespace declarations are not among them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Element {
    /// The local name.
    pub name: String,
    /// The namespace, empty for none.
    pub ns: String,
    /// Attributes in document order.
    pub attrs: Vec<(String, String)>,
    /// Child elements in document order.
    pub children: Vec<Element>,
    /// All text directly inside, joined and unescaped.
    pub text: String,
}

/// The bytes are not one well-formed element.
#[derive(Debug, thiserror::Error)]
#[error("not well-formed: {0}")]
pub struct XmlError(pub String);

impl Element {
    /// Reads one element, with white space round it at most.
    ///
    /// Refused: what is not well-formed, also by Namespaces in XML; comments, processing
    /// instructions, DTDs, entities but the five; more than 64 elements inside each
    /// other, 128 attributes, 128 namespaces at once; trees of more than 8 MiB.
    ///
    /// An attribute with a prefix other than `xml` is left out: without its declaration
    /// it could not be written again, and nothing here has a use for one.
    pub fn parse(xml: &str) -> Result<Element, XmlError> {
        Self::parse_in(xml, "")
    }

    /// The same, of an element cut out of one whose default namespace it inherits.
    pub fn parse_in(xml: &str, default_ns: &str) -> Result<Element, XmlError> {
        let mut reader = Reader::new(xml, default_ns)?;
        let mut room = MAX_TREE;
        reader.read()?;
        let element = Self::read(&mut reader, &mut room)?;
        reader.read()?;
        Ok(element)
    }

    /// Right after its start tag: reads the rest of an element. `room` is how many bytes
    /// of memory the tree may still take.
    pub(crate) fn read(reader: &mut Reader<'_>, room: &mut usize) -> Result<Element, XmlError> {
        let mut open = vec![Self::start(reader, room)?];
        loop {
            let token = reader.read()?;
            if token == Token::Open {
                open.push(Self::start(reader, room)?);
                continue;
            }
            let Some(last) = open.last_mut() else { return Err(XmlError("an end without start".into())) };
            match token {
                Token::Text(text) => push_text(&mut last.text, text),
                Token::Char(c) => last.text.push(c),
                _ => {
                    let whole = std::mem::take(last);
                    open.pop();
                    match open.last_mut() {
                        Some(parent) => parent.children.push(whole),
                        None => return Ok(whole),
                    }
                }
            }
        }
    }

    /// The element whose start tag was read last, still empty.
    fn start(reader: &Reader<'_>, room: &mut usize) -> Result<Element, XmlError> {
        let tag = reader.tag();
        let cost = size_of::<Element>() + tag.name.len() + tag.ns.len();
        *room = room.checked_sub(cost).ok_or_else(|| XmlError("too many elements".into()))?;
        let own = tag.attributes.iter().filter(|a| matches!(a.prefix(), "" | "xml"));
        Ok(Element {
            name: tag.name.to_owned(),
            ns: tag.ns.to_owned(),
            attrs: own.map(|a| (a.name.to_owned(), a.value.to_string())).collect(),
            ..Element::default()
        })
    }

    /// The element as XML that stands alone: a namespace is declared where it differs
    /// from the parent's, text comes before child elements.
    pub fn to_xml(&self) -> String {
        let mut out = String::with_capacity(256);
        self.write(&mut out, "");
        out
    }

    fn write(&self, out: &mut String, default_ns: &str) {
        let prefix = if self.ns == ns::XML { "xml:" } else { "" };
        out.extend(["<", prefix, &self.name]);
        let mut inherited = default_ns;
        if prefix.is_empty() && self.ns != default_ns {
            inherited = &self.ns;
            out.extend([" xmlns='", &escape_attribute(&self.ns), "'"]);
        }
        for (name, value) in &self.attrs {
            out.extend([" ", name, "='", &escape_attribute(value), "'"]);
        }
        if self.text.is_empty() && self.children.is_empty() {
            out.push_str("/>");
            return;
        }
        out.push('>');
        out.push_str(&escape_text(&self.text));
        for child in &self.children {
            child.write(out, inherited);
        }
        out.extend(["</", prefix, &self.name, ">"]);
    }

    /// The value of an attribute.
    pub fn attr(&self, name: &str) -> Option<&str> {
        self.attrs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Whether this is that element of that namespace.
    pub fn is(&self, name: &str, ns: &str) -> bool {
        self.name == name && self.ns == ns
    }

    /// The first child of that name and namespace.
    pub fn child(&self, name: &str, ns: &str) -> Option<&Element> {
        self.children.iter().find(|c| c.is(name, ns))
    }
}

/// Adds text with its line ends normalised (XML 1.0 section 2.11).
fn push_text(to: &mut String, text: &str) {
    let mut rest = text;
    while let Some((line, after)) = rest.split_once('\r') {
        to.extend([line, "\n"]);
        rest = after.strip_prefix('\n').unwrap_or(after);
    }
    to.push_str(rest);
}
