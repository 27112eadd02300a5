//! XML as XMPP uses it: framing an endless stream, a small tree, escaping.

mod element;
mod escape;
mod frame;
mod reader;
mod rules;
mod scan;

pub use element::{Element, XmlError};
pub use escape::{escape_attribute, escape_text};
pub use frame::{Frame, FrameError, Framer, Limits};
pub use reader::{Attribute, Reader, Tag, Token};

pub(crate) use element::MAX_TREE;
