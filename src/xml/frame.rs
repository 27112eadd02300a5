//! Cutting an endless stream into whole stanzas, with limits checked as bytes arrive.
//!
//! A component stream is one XML document that lasts for days. The framer finds where
//! each child of the root ends and hands its bytes out unchanged; what they say is for a
//! parser of finite text. It looks at each byte once, however the bytes are split over
//! reads, and refuses what RFC 6120 section 11.1 takes out of XML.

use bytes::{Buf, Bytes, BytesMut};

use super::rules::{self, BadText};
use super::scan::{Piece, Scanner, white_space};

/// What a stream may cost at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of one stanza, of the stream's start tag, or of anything else that has to be
    /// held until it ends. A stanza of exactly so many bytes passes.
    pub stanza_bytes: usize,
    /// Elements inside each other in one stanza, the stanza itself counted. Zero lets no
    /// stanza pass.
    pub depth: usize,
}

/// A whole piece of a stream. The bytes are UTF-8 and hold only characters that XML
/// carries; they share the memory into which they were read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// The stream's start tag, `<stream:stream ...>`.
    Open(Bytes),
    /// A child of the stream, from its `<` to its `>`. Tags may still be mismatched.
    Stanza(Bytes),
    /// The stream's end tag.
    Close,
}

/// The stream can't go on. See [`FrameError::condition`] for what to tell the peer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// A stanza or tag has more bytes than it may.
    #[error("more than {limit} bytes without an end")]
    TooLarge {
        /// [`Limits::stanza_bytes`]
        limit: usize,
    },
    /// A stanza nests deeper than it may.
    #[error("more than {limit} elements inside each other")]
    TooDeep {
        /// [`Limits::depth`]
        limit: usize,
    },
    /// A part of XML that XMPP leaves out: a comment, a processing instruction, a DTD.
    #[error("a {0} is not allowed in XMPP")]
    Restricted(&'static str),
    /// A reference to an entity that is not one of the five.
    #[error("an entity that XML does not define")]
    UnknownEntity,
    /// Not XML.
    #[error("not well-formed: {0}")]
    NotWellFormed(&'static str),
    /// Bytes that are not UTF-8, or a declaration of another encoding.
    #[error("the stream is not UTF-8")]
    NotUtf8,
    /// More than white space after the stream's end tag.
    #[error("bytes after the end of the stream")]
    AfterClose,
}

impl FrameError {
    /// The stream error condition of RFC 6120 section 4.9.3 that says this.
    pub fn condition(&self) -> &'static str {
        match self {
            FrameError::TooLarge { .. } | FrameError::TooDeep { .. } => "policy-violation",
            FrameError::Restricted(_) | FrameError::UnknownEntity => "restricted-xml",
            FrameError::NotWellFormed(_) | FrameError::AfterClose => "not-well-formed",
            FrameError::NotUtf8 => "unsupported-encoding",
        }
    }
}

impl From<BadText> for FrameError {
    fn from(bad: BadText) -> Self {
        match bad {
            BadText::NotUtf8 => FrameError::NotUtf8,
            BadText::IllegalChar => FrameError::NotWellFormed("a character that XML cannot carry"),
        }
    }
}

/// Cuts one stream, from its first byte to its last. It holds at most
/// [`Limits::stanza_bytes`], and what was pushed since [`Framer::next`] last said `None`.
#[derive(Debug)]
pub struct Framer {
    buffer: BytesMut,
    scanner: Scanner,
    limits: Limits,
    /// The root's name as written, once its start tag was seen.
    root: Vec<u8>,
    closed: bool,
    failed: Option<FrameError>,
}

impl Framer {
    /// A framer for a new stream.
    pub fn new(limits: Limits) -> Self {
        Framer {
            buffer: BytesMut::new(),
            scanner: Scanner::new(limits.depth),
            limits,
            root: Vec::new(),
            closed: false,
            failed: None,
        }
    }

    /// Adds what was read. Call [`Framer::next`] until it says `None` before the next
    /// push: nothing is refused in between.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Where to append what is read, without a copy (`read_buf`). What it already holds
    /// must stay as it is.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole piece, `None` until more bytes come. After an error there is only
    /// that error.
    #[expect(clippy::should_implement_trait, reason = "not an iterator: after None more may come")]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.advance().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.buffer = BytesMut::new();
        })
    }

    fn advance(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            self.drop_white_space();
            if self.closed && !self.buffer.is_empty() {
                return Err(FrameError::AfterClose);
            }
            let limit = self.limits.stanza_bytes;
            let within = &self.buffer[..self.buffer.len().min(limit)];
            let Some((piece, length)) = self.scanner.run(within)? else {
                let full = self.buffer.len() > limit;
                return if full { Err(FrameError::TooLarge { limit }) } else { Ok(None) };
            };
            let bytes = self.buffer.split_to(length).freeze();
            if let Some(frame) = self.frame(piece, bytes)? {
                return Ok(Some(frame));
            }
        }
    }

    /// Between stanzas white space keeps a connection alive and means nothing.
    fn drop_white_space(&mut self) {
        if !self.scanner.is_between() {
            return;
        }
        let spaces = white_space(&self.buffer);
        if spaces > 0 {
            self.buffer.advance(spaces);
            self.scanner.skipped();
        }
    }

    fn frame(&mut self, piece: Piece, bytes: Bytes) -> Result<Option<Frame>, FrameError> {
        let text = rules::text(&bytes)?;
        match piece {
            Piece::Stanza => Ok(Some(Frame::Stanza(bytes))),
            Piece::Declaration => check_declaration(text).map(|()| None),
            Piece::Open => {
                self.root = root_name(&text[1..text.len() - 1]).into();
                Ok(Some(Frame::Open(bytes)))
            }
            Piece::Close => {
                if root_name(&text[2..text.len() - 1]).as_bytes() != self.root {
                    return Err(FrameError::NotWellFormed("an end tag without its start tag"));
                }
                self.closed = true;
                Ok(Some(Frame::Close))
            }
        }
    }
}

fn root_name(tag: &str) -> &str {
    rules::split_tag(tag).0
}

/// `<?xml version='1.0' encoding='UTF-8'?>`, the encoding optional.
fn check_declaration(text: &str) -> Result<(), FrameError> {
    let (name, attributes) = rules::split_tag(&text[2..text.len() - 2]);
    if name != "xml" {
        return Err(FrameError::Restricted("processing instruction"));
    }
    let mut version = None;
    for attribute in attributes {
        match attribute.map_err(FrameError::NotWellFormed)? {
            ("version", value) => version = Some(value),
            ("encoding", value) if !value.eq_ignore_ascii_case("utf-8") => return Err(FrameError::NotUtf8),
            _ => {}
        }
    }
    if version != Some("1.0") {
        return Err(FrameError::NotWellFormed("not XML 1.0"));
    }
    Ok(())
}
