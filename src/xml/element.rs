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
            let Some(last) = open.last_mut() else {
                return Err(XmlError("an end without start".into()));
            };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(xml: &str) -> Element {
        Element::parse(xml).unwrap_or_else(|error| panic!("{error}: {xml}"))
    }

    #[test]
    fn names_attributes_and_text() {
        let e = parse(
            " <a xmlns='urn:a' b='1' xml:lang='de'>x<b/>&lt;y<p:c xmlns:p='urn:p' xmlns=''><d/></p:c><![CDATA[<z>]]>\r\n</a>\n",
        );
        assert!(e.is("a", "urn:a"));
        assert_eq!(
            (e.attr("b"), e.attr("xml:lang"), e.attr("xmlns")),
            (Some("1"), Some("de"), None)
        );
        assert_eq!(e.text, "x<y<z>\n");
        assert!(e.child("b", "urn:a").is_some());
        let c = e.child("c", "urn:p").expect("a child");
        assert!(c.children[0].is("d", ""));
    }

    #[test]
    fn attribute_values_are_normalised() {
        let e = parse("<a b='1\r\n2\t3\r4\n5' c='&#10;&#9;&amp;amp;'/>");
        assert_eq!((e.attr("b"), e.attr("c")), (Some("1 2 3 4 5"), Some("\n\t&amp;")));
    }

    #[test]
    fn namespaces_are_compared_as_what_they_say() {
        assert_eq!(parse("<a xmlns='urn:xmpp:dela&#121;'/>").ns, "urn:xmpp:delay");
    }

    #[test]
    fn a_prefixed_attribute_is_left_out() {
        let e = parse("<a xmlns:p='urn:p' p:b='1' c='2'/>");
        assert_eq!(e.attrs, [("c".to_owned(), "2".to_owned())]);
        assert_eq!(e.to_xml(), "<a c='2'/>");
    }

    #[test]
    fn a_default_namespace_is_inherited() {
        let e = Element::parse_in("<iq type='get'><query xmlns='q'/></iq>", "jabber:client")
            .expect("an element");
        assert!(e.is("iq", "jabber:client"));
        assert_eq!(e.to_xml(), "<iq xmlns='jabber:client' type='get'><query xmlns='q'/></iq>");
    }

    #[test]
    fn written_canonically() {
        let cases = [
            ("<a></a>", "<a/>"),
            ("<p:a xmlns:p='urn:p'><p:b/><c/></p:a>", "<a xmlns='urn:p'><b/><c xmlns=''/></a>"),
            ("<a b=\"'&quot;&#10;\">&#13;&gt;</a>", "<a b='&apos;&quot;&#10;'>&#13;&gt;</a>"),
            ("<a>1<b/>2</a>", "<a>12<b/></a>"),
            ("<xml:a xmlns='urn:x'><b/></xml:a>", "<xml:a><b xmlns='urn:x'/></xml:a>"),
            ("<a xmlns='http://x/?a&amp;b'/>", "<a xmlns='http://x/?a&amp;b'/>"),
        ];
        for (xml, canonical) in cases {
            assert_eq!(parse(xml).to_xml(), canonical);
            assert_eq!(parse(canonical), parse(xml));
        }
    }

    #[test]
    fn refused() {
        let cases = [
            ("", "no element"),
            (" ", "no element"),
            ("x", "more than an element"),
            ("<a/>x", "more than an element"),
            ("<a/>&amp;", "more than an element"),
            ("<a/><![CDATA[x]]>", "more than an element"),
            ("<a/><b/>", "more than one element"),
            ("\u{feff}<a/>", "byte order mark"),
            ("<a>", "without end"),
            ("<a", ""),
            ("<a></b>", "expected"),
            ("<a></ a>", "expected"),
            ("<a><b></a></b>", "expected"),
            ("</a>", ""),
            ("<a/></a>", ""),
            ("<>", "not a name"),
            ("< a/>", "not a name"),
            ("<1/>", "not a name"),
            ("<a:b:c/>", "not a name"),
            ("<a b='1' b='2'/>", "twice"),
            ("<a xmlns='x' xmlns='y'/>", "twice"),
            ("<a xmlns:p='x' xmlns:p='x'/>", "twice"),
            ("<a xmlns:p='x' xmlns:q='x' p:b='1' q:b='2'/>", "twice"),
            ("<a b='1'c='2'/>", "white space"),
            ("<a b/>", "without a value"),
            ("<a b=1/>", "without quotes"),
            ("<a b='<'/>", "'<'"),
            ("<a b='&'/>", "'&'"),
            ("<p:a/>", "'p' is not declared"),
            ("<a p:b='1'/>", "'p' is not declared"),
            ("<a><b xmlns:p='x'/><p:c/></a>", "'p' is not declared"),
            ("<xmlns:a/>", "not declared"),
            ("<a xmlns:p=''/>", "forbids"),
            ("<a xmlns:xml='x'/>", "forbids"),
            ("<a xmlns:xmlns='x'/>", "forbids"),
            ("<a xmlns='http://www.w3.org/XML/1998/namespace'/>", "forbids"),
            ("<a xmlns:p='http://www.w3.org/2000/xmlns/'/>", "forbids"),
            ("<?xml version='1.0'?><a/>", "more than an element"),
            ("<!DOCTYPE a><a/>", "more than an element"),
            ("<a><!-- c --></a>", "comment"),
            ("<a><?pi?></a>", "comment"),
            ("<a>&lol;</a>", "lol"),
            ("<a b='&lol;'/>", "lol"),
            ("<a>&#0;</a>", "#0"),
            ("<a>&#xD800;</a>", "#xD800"),
            ("<a>\0</a>", "cannot carry"),
            ("<a>]]></a>", "]]>"),
        ];
        for (xml, why) in cases {
            let error = Element::parse(xml).expect_err(xml).to_string();
            assert!(error.contains(why), "{xml}: {error}");
        }
        assert!(
            Element::parse("<a xmlns:xml='http://www.w3.org/XML/1998/namespace' xml:b=''/>")
                .is_ok()
        );
    }

    #[test]
    fn i7_depth_attributes_and_declarations_have_limits() {
        let nested = |n: usize| "<a>".repeat(n) + &"</a>".repeat(n);
        assert!(Element::parse(&nested(64)).is_ok());
        assert!(Element::parse(&nested(65)).is_err());
        assert!(Element::parse(&nested(100_000)).is_err());
        let attributes =
            |n: usize| format!("<a{}/>", (0..n).map(|i| format!(" a{i}=''")).collect::<String>());
        assert!(Element::parse(&attributes(128)).is_ok());
        assert!(Element::parse(&attributes(129)).is_err());
        let declarations = |n: usize| attributes(n).replace(" a", " xmlns:a").replace("''", "'x'");
        assert!(Element::parse(&declarations(126)).is_ok(), "two are always there");
        assert!(Element::parse(&declarations(127)).is_err());
    }

    #[test]
    fn i7_a_tree_takes_bounded_memory() {
        let long = format!("<a xmlns='{}'>{}</a>", "n".repeat(100_000), "<b/>".repeat(1_000));
        let error = Element::parse(&long).expect_err("a hundred megabytes").to_string();
        assert!(error.contains("too many elements"), "{error}");
    }
}
