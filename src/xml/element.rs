//! A small tree, for what is not on the hot path: IQs, stream errors, rules.

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
