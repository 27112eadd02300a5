//! A pull reader of one whole element: quick-xml finds the tags, and what it leaves
//! unchecked is checked here, namespaces included.
//!
//! quick-xml's own `NsReader` compares namespaces as written, so `urn:xmpp:dela&#121;`
//! would pass for another namespace than `urn:xmpp:delay`; here references are resolved
//! first.

use std::borrow::Cow;

use quick_xml::events::Event;

use super::XmlError;
use super::rules::{self, is_space};
use crate::ns;

/// Elements inside each other, the outermost counted.
pub const MAX_DEPTH: usize = 64;
/// Attributes of one element, declarations not counted. Finding duplicates compares each
/// with all before it.
const MAX_ATTRIBUTES: usize = 128;
/// Namespace declarations that hold at one place. A look-up goes through them.
const MAX_BINDINGS: usize = 128;
/// The namespace of declarations themselves; nothing may be bound to it.
const XMLNS: &str = "http://www.w3.org/2000/xmlns/";

/// What the reader came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token<'i> {
    /// A start tag; [`Reader::tag`] is about it until the next token.
    Open,
    /// The end of an element. An empty element has one too.
    Close,
    /// Text as it stands, line ends as written; references come apart from it.
    Text(&'i str),
    /// A character that was written as a reference.
    Char(char),
    /// The end of the bytes, after the outermost element was closed.
    End,
}

/// An attribute, not a namespace declaration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attribute<'i> {
    /// Its name as written, prefix included.
    pub name: &'i str,
    /// Its value, normalised (XML 1.0 section 3.3.3).
    pub value: Cow<'i, str>,
    prefix: &'i str,
}

impl<'i> Attribute<'i> {
    /// Its prefix, empty for none.
    pub fn prefix(&self) -> &'i str {
        self.prefix
    }

    fn local(&self) -> &'i str {
        if self.prefix.is_empty() { self.name } else { &self.name[self.prefix.len() + 1..] }
    }
}

/// A namespace declaration, and the depth of the element that made it.
#[derive(Debug)]
struct Binding<'i> {
    prefix: &'i str,
    ns: Cow<'i, str>,
    depth: usize,
}

/// The start tag at which the reader stands.
#[derive(Debug)]
pub struct Tag<'r, 'i> {
    /// The local name.
    pub name: &'i str,
    /// The namespace, empty for none.
    pub ns: &'r str,
    /// The attributes in order.
    pub attributes: &'r [Attribute<'i>],
    /// Where its `<` stands.
    pub start: usize,
}

impl<'r> Tag<'r, '_> {
    /// Whether this is that element of that namespace.
    pub fn is(&self, name: &str, ns: &str) -> bool {
        self.name == name && self.ns == ns
    }

    /// The value of an attribute.
    pub fn attr(&self, name: &str) -> Option<&'r str> {
        self.attributes.iter().find(|a| a.name == name).map(|a| &*a.value)
    }
}

/// Reads one element and refuses what is not well-formed, what XMPP leaves out of XML
/// (comments, processing instructions, DTDs, entities), a prefix that is not declared
/// inside, and more nesting, attributes or declarations than anyone needs.
pub struct Reader<'i> {
    xml: &'i str,
    inner: quick_xml::Reader<&'i [u8]>,
    bindings: Vec<Binding<'i>>,
    attributes: Vec<Attribute<'i>>,
    name: &'i str,
    /// The binding of the tag's prefix.
    ns: usize,
    start: usize,
    depth: usize,
    /// The start tag just read has no end tag.
    empty: bool,
    /// The outermost element was seen.
    begun: bool,
}

impl<'i> Reader<'i> {
    /// A reader of `xml`, in which names without prefix are in `default_ns` until
    /// something else is declared.
    pub fn new(xml: &'i str, default_ns: &'i str) -> Result<Self, XmlError> {
        rules::check_chars(xml).map_err(|_| error("a character that XML cannot carry"))?;
        if xml.starts_with('\u{feff}') {
            return Err(error("a byte order mark"));
        }
        let mut reader = Reader {
            xml,
            inner: quick_xml::Reader::from_str(xml),
            bindings: Vec::with_capacity(8),
            attributes: Vec::with_capacity(8),
            name: "",
            ns: 0,
            start: 0,
            depth: 0,
            empty: false,
            begun: false,
        };
        reader.bind("xml", Cow::Borrowed(ns::XML));
        reader.bind("", Cow::Borrowed(default_ns));
        Ok(reader)
    }

    /// The next token. After an error the reader is of no more use.
    pub fn read(&mut self) -> Result<Token<'i>, XmlError> {
        if self.empty {
            self.empty = false;
            return Ok(self.close());
        }
        loop {
            let start = self.place();
            match self.inner.read_event().map_err(|e| error(e.to_string()))? {
                Event::Start(_) => return self.open(start + 1, 1),
                Event::Empty(_) => {
                    self.empty = true;
                    return self.open(start + 1, 2);
                }
                Event::End(_) => return Ok(self.close()),
                Event::Text(_) if self.depth == 0 => self.outside(start)?,
                Event::Text(_) => return self.text(start),
                Event::Eof => return self.end(),
                _ if self.depth == 0 => return Err(error("more than an element")),
                Event::CData(_) => return Ok(Token::Text(self.since(start + 9, 3)?)),
                Event::GeneralRef(_) => return self.reference(start + 1),
                _ => return Err(error("a comment, processing instruction or declaration")),
            }
        }
    }

    /// The start tag read last.
    pub fn tag(&self) -> Tag<'_, 'i> {
        let ns = self.bindings.get(self.ns).map_or("", |b| &*b.ns);
        Tag { name: self.name, ns, attributes: &self.attributes, start: self.start }
    }

    /// Elements open: after the outermost start tag 1, after its end tag 0.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// How many bytes are behind the reader.
    pub fn place(&self) -> usize {
        // A slice is never longer than a usize can say.
        self.inner.buffer_position() as usize
    }

    /// Right after a start tag: reads to the end of that element. What is inside is
    /// checked all the same.
    pub fn skip(&mut self) -> Result<(), XmlError> {
        let depth = self.depth;
        loop {
            if self.read()? == Token::Close && self.depth < depth {
                return Ok(());
            }
        }
    }

    /// The text from `start` to what was read last, less the last `end` bytes.
    fn since(&self, start: usize, end: usize) -> Result<&'i str, XmlError> {
        let range = start..self.place().saturating_sub(end);
        self.xml.get(range).ok_or_else(|| error("a tag that is cut off"))
    }

    fn open(&mut self, start: usize, end: usize) -> Result<Token<'i>, XmlError> {
        if self.depth == 0 && std::mem::replace(&mut self.begun, true) {
            return Err(error("more than one element"));
        }
        if self.depth == MAX_DEPTH {
            return Err(error("too many elements inside each other"));
        }
        self.depth += 1;
        self.start = start - 1;
        let (name, attributes) = rules::split_tag(self.since(start, end)?);
        let (prefix, local) = split_name(name)?;
        self.attributes.clear();
        for attribute in attributes {
            let (name, raw) = attribute.map_err(error)?;
            self.attribute(name, raw)?;
        }
        self.name = local;
        self.ns = self.resolve(prefix)?;
        self.check_attributes()?;
        Ok(Token::Open)
    }

    fn attribute(&mut self, name: &'i str, raw: &'i str) -> Result<(), XmlError> {
        let (prefix, local) = split_name(name)?;
        let value = attribute_value(raw)?;
        match (prefix, local) {
            ("", "xmlns") => self.declare("", value),
            ("xmlns", prefix) => self.declare(prefix, value),
            _ if self.attributes.len() == MAX_ATTRIBUTES => Err(error("too many attributes")),
            _ => {
                self.attributes.push(Attribute { name, value, prefix });
                Ok(())
            }
        }
    }

    fn declare(&mut self, prefix: &'i str, ns: Cow<'i, str>) -> Result<(), XmlError> {
        let unbindable = match prefix {
            "xml" => ns != ns::XML,
            "xmlns" => true,
            _ => ns == ns::XML || ns == XMLNS || (ns.is_empty() && !prefix.is_empty()),
        };
        if unbindable {
            return Err(error("a namespace declaration that XML forbids"));
        }
        if self.bindings.len() == MAX_BINDINGS {
            return Err(error("too many namespace declarations"));
        }
        let here = self.bindings.iter().rev().take_while(|b| b.depth == self.depth);
        if here.into_iter().any(|b| b.prefix == prefix) {
            return Err(error("a namespace declared twice"));
        }
        self.bind(prefix, ns);
        Ok(())
    }

    fn bind(&mut self, prefix: &'i str, ns: Cow<'i, str>) {
        self.bindings.push(Binding { prefix, ns, depth: self.depth });
    }

    fn resolve(&self, prefix: &str) -> Result<usize, XmlError> {
        let found = self.bindings.iter().rposition(|b| b.prefix == prefix);
        found.ok_or_else(|| error(format!("prefix '{}' is not declared", excerpt(prefix))))
    }

    /// No two of one name; every prefix declared, no two prefixes of one namespace with
    /// one local name.
    fn check_attributes(&self) -> Result<(), XmlError> {
        for (i, attribute) in self.attributes.iter().enumerate() {
            let before = &self.attributes[..i];
            if before.iter().any(|b| b.name == attribute.name) {
                return Err(error(format!("attribute '{}' twice", excerpt(attribute.name))));
            }
            if !attribute.prefix.is_empty() {
                self.check_prefixed(before, attribute)?;
            }
        }
        Ok(())
    }

    fn check_prefixed(
        &self,
        before: &[Attribute<'i>],
        attribute: &Attribute<'i>,
    ) -> Result<(), XmlError> {
        let ns = &self.bindings[self.resolve(attribute.prefix)?].ns;
        for other in
            before.iter().filter(|b| !b.prefix.is_empty() && b.local() == attribute.local())
        {
            if self.bindings[self.resolve(other.prefix)?].ns == *ns {
                return Err(error(format!("attribute '{}' twice", excerpt(attribute.name))));
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Token<'i> {
        while self.depth > 0 && self.bindings.last().is_some_and(|b| b.depth == self.depth) {
            self.bindings.pop();
        }
        self.depth = self.depth.saturating_sub(1);
        Token::Close
    }

    fn text(&self, start: usize) -> Result<Token<'i>, XmlError> {
        let text = self.since(start, 0)?;
        if memchr::memchr(b']', text.as_bytes()).is_some() && text.contains("]]>") {
            return Err(error("']]>' in text"));
        }
        Ok(Token::Text(text))
    }

    /// Text before or after the outermost element.
    fn outside(&self, start: usize) -> Result<(), XmlError> {
        if self.since(start, 0)?.bytes().all(is_space) {
            Ok(())
        } else {
            Err(error("more than an element"))
        }
    }

    fn reference(&self, start: usize) -> Result<Token<'i>, XmlError> {
        character(self.since(start, 1)?).map(Token::Char)
    }

    fn end(&self) -> Result<Token<'i>, XmlError> {
        match (self.begun, self.depth) {
            (true, 0) => Ok(Token::End),
            (false, _) => Err(error("no element")),
            _ => Err(error("an element without end")),
        }
    }
}

fn error(what: impl Into<String>) -> XmlError {
    XmlError(what.into())
}

/// As much of a name as an error says.
fn excerpt(name: &str) -> String {
    name.chars().take(32).collect()
}

fn split_name(name: &str) -> Result<(&str, &str), XmlError> {
    rules::split_name(name).ok_or_else(|| error(format!("'{}' is not a name", excerpt(name))))
}

fn character(reference: &str) -> Result<char, XmlError> {
    let character = rules::reference(reference.as_bytes());
    character.map_err(|_| error(format!("unknown reference '{}'", excerpt(reference))))
}

/// The value that a raw attribute value stands for: references resolved, each white
/// space a space (XML 1.0 sections 2.11 and 3.3.3).
fn attribute_value(raw: &str) -> Result<Cow<'_, str>, XmlError> {
    let special = |b: u8| matches!(b, b'&' | b'<' | b'\t' | b'\n' | b'\r');
    if !raw.bytes().any(special) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut value = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.bytes().position(special) {
        value.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        rest = match rest.as_bytes()[at] {
            b'<' => return Err(error("'<' in an attribute value")),
            b'&' => {
                let (name, after) =
                    after.split_once(';').ok_or_else(|| error("'&' that begins no reference"))?;
                value.push(character(name)?);
                after
            }
            byte => {
                value.push(' ');
                after.strip_prefix('\n').filter(|_| byte == b'\r').unwrap_or(after)
            }
        };
    }
    value.push_str(rest);
    Ok(Cow::Owned(value))
}
