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
    /// held until it ends. A stanza of exactly so many bytes passes; a larger one is skipped,
    /// as one that is too deep is.
    pub stanza_bytes: usize,
    /// Elements inside each other in one stanza, the stanza itself counted. One that goes
    /// deeper is skipped: anyone who can write to the server could end the stream with it.
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
    /// A whole child of the stream that nests deeper than it may, left out.
    TooDeep,
    /// A child of the stream that has more bytes than it may, left out.
    TooLarge,
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
            FrameError::TooLarge { .. } => "policy-violation",
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
    /// The stanza that is open is larger than it may be.
    skipping: bool,
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
            skipping: false,
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
            let end = if self.skipping { usize::MAX } else { limit };
            let within = &self.buffer[..self.buffer.len().min(end)];
            let Some((piece, length)) = self.scanner.run(within)? else {
                if self.buffer.len() <= limit && !self.skipping {
                    return Ok(None);
                }
                let all = within.len() == self.buffer.len();
                self.skip()?;
                if all {
                    return Ok(None);
                }
                continue;
            };
            let bytes = self.buffer.split_to(length).freeze();
            if std::mem::take(&mut self.skipping) {
                return Ok(Some(Frame::TooLarge));
            }
            if let Some(frame) = self.frame(piece, bytes)? {
                return Ok(Some(frame));
            }
        }
    }

    /// Lets go of what was looked at of a stanza that is too large.
    fn skip(&mut self) -> Result<(), FrameError> {
        let limit = self.limits.stanza_bytes;
        if !self.scanner.is_in_stanza() {
            return Err(FrameError::TooLarge { limit });
        }
        self.skipping = true;
        let done = self.scanner.forget();
        // What can't be let go of is one endless reference.
        if done == 0 && self.buffer.len() > limit {
            return Err(FrameError::TooLarge { limit });
        }
        self.buffer.advance(done);
        Ok(())
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
            Piece::TooDeep => Ok(Some(Frame::TooDeep)),
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
            ("encoding", value) if !value.eq_ignore_ascii_case("utf-8") => {
                return Err(FrameError::NotUtf8);
            }
            _ => {}
        }
    }
    if version != Some("1.0") {
        return Err(FrameError::NotWellFormed("not XML 1.0"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { stanza_bytes: 1000, depth: 4 };
    const OPEN: &str = "<stream:stream xmlns:stream='s' to='a>b'>";

    /// Everything after the stream's start tag, and how it ended.
    fn frames(xml: impl AsRef<[u8]>) -> (Vec<Frame>, Option<FrameError>) {
        let mut framer = Framer::new(LIMITS);
        framer.push(OPEN.as_bytes());
        framer.push(xml.as_ref());
        let mut frames = drain(&mut framer);
        assert_eq!(frames.0.remove(0), Frame::Open(OPEN.into()));
        frames
    }

    fn drain(framer: &mut Framer) -> (Vec<Frame>, Option<FrameError>) {
        let mut frames = Vec::new();
        loop {
            match framer.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, None),
                Err(error) => return (frames, Some(error)),
            }
        }
    }

    fn error(xml: impl AsRef<[u8]>) -> FrameError {
        let (frames, error) = frames(xml);
        assert_eq!(frames, []);
        error.expect("an error")
    }

    #[test]
    fn whole_stanzas_come_as_they_are() {
        let stanzas = [
            "<a/>",
            "<a />",
            "<a></a>",
            "<a><b/><b></b ></a>",
            "<a b='/>' c=\"/a>'\"/>",
            "<a b='&quot;&#x41;'>&amp;&#10;&lt;</a>",
            "<a><![CDATA[</a>]] > ]>&<!-- ]]]]></a>",
            "<p:a xmlns:p='x'><p:a/></p:a>",
            "<_a>\u{e9}\u{1f600}\u{fffd}</_a>",
        ];
        for stanza in stanzas {
            let twice = format!(" {stanza}\n{stanza}");
            let whole = Frame::Stanza(stanza.into());
            assert_eq!(frames(twice), (vec![whole.clone(), whole], None), "{stanza}");
        }
    }

    #[test]
    fn a_stanza_waits_for_its_end() {
        for part in [
            "<",
            "<a",
            "<a b='",
            "<a b='>",
            "<a b='&am",
            "<a>",
            "<a><!",
            "<a><![CDATA[",
            "<a>]]",
            "<a></a",
        ] {
            assert_eq!(frames(part), (vec![], None), "{part}");
        }
    }

    #[test]
    fn cdata_ends_where_it_ends_though_split() {
        let mut framer = Framer::new(LIMITS);
        for part in [OPEN, "<a><![CD", "ATA[x]", "]", "]", ">", "</a>"] {
            framer.push(part.as_bytes());
            if part != "</a>" {
                assert_eq!(drain(&mut framer).1, None);
            }
        }
        assert_eq!(drain(&mut framer), (vec![Frame::Stanza("<a><![CDATA[x]]]></a>".into())], None));
    }

    #[test]
    fn stanzas_share_the_memory_they_were_read_into() {
        let mut framer = Framer::new(LIMITS);
        framer.push(OPEN.as_bytes());
        framer.push(b"<a/><b/>");
        let read = framer.buffer().as_ptr();
        let starts = drain(&mut framer).0.into_iter().map(|frame| match frame {
            Frame::Open(bytes) | Frame::Stanza(bytes) => bytes.as_ptr() as usize - read as usize,
            Frame::TooDeep | Frame::TooLarge | Frame::Close => 0,
        });
        assert!(starts.eq([0, OPEN.len(), OPEN.len() + 4]));
    }

    #[test]
    fn the_declaration_comes_first_or_not_at_all() {
        let ended = |xml: &str| {
            let mut framer = Framer::new(LIMITS);
            framer.push(xml.as_bytes());
            let (frames, error) = drain(&mut framer);
            (frames.len(), error)
        };
        let good = [
            "<?xml version='1.0'?><s>",
            "<?xml version=\"1.0\" encoding='utf-8' standalone='yes' ?>\n<s>",
            " \n<s>",
        ];
        for xml in good {
            assert_eq!(ended(xml), (1, None), "{xml}");
        }
        let pi = FrameError::Restricted("processing instruction");
        let not_xml_1 = FrameError::NotWellFormed("not XML 1.0");
        let bad = [
            (" <?xml version='1.0'?><s>", &pi),
            ("<?xml version='1.0'?><?xml version='1.0'?><s>", &pi),
            ("<?php version='1.0'?><s>", &pi),
            ("<?xml-stylesheet version='1.0'?><s>", &pi),
            ("<??>", &pi),
            ("<?xml version='1.0' encoding='UTF-16'?><s>", &FrameError::NotUtf8),
            ("<?xml version='1.1'?><s>", &not_xml_1),
            ("<?xml?><s>", &not_xml_1),
            ("\u{feff}<s>", &FrameError::NotWellFormed("text between stanzas")),
            ("<s/>", &FrameError::NotWellFormed("a stream without content")),
        ];
        for (xml, error) in bad {
            assert_eq!(ended(xml), (0, Some(error.clone())), "{xml}");
        }
    }

    #[test]
    fn rfc6120_11_1_restricted_xml() {
        let cases = [
            ("<!-- c -->", "comment"),
            ("<a><!-- c --></a>", "comment"),
            ("<!DOCTYPE a [<!ENTITY lol 'lol'>]>", "document type declaration"),
            ("<a><!DOCTYPE a></a>", "document type declaration"),
            ("<a><![INCLUDE[x]]></a>", "markup declaration"),
            ("<a><!ENTITY x 'y'></a>", "markup declaration"),
            ("<?pi?>", "processing instruction"),
            ("<a><?pi?></a>", "processing instruction"),
        ];
        for (xml, what) in cases {
            let error = error(xml);
            assert_eq!(error, FrameError::Restricted(what), "{xml}");
            assert_eq!(error.condition(), "restricted-xml");
        }
    }

    #[test]
    fn only_five_entities_and_legal_characters() {
        for entity in ["lol", "nbsp", "AMP", "\u{e9}"] {
            for xml in [format!("<a>&{entity};</a>"), format!("<a b='&{entity};'/>")] {
                let error = error(&xml);
                assert_eq!(error, FrameError::UnknownEntity, "{xml}");
                assert_eq!(error.condition(), "restricted-xml");
            }
        }
        for number in ["#0", "#x0", "#xD800", "#xDFFF", "#x1F", "#xFFFE", "#x110000", "#", "#x"] {
            for xml in [format!("<a>&{number};</a>"), format!("<a b='&{number};'/>")] {
                assert_eq!(
                    error(&xml),
                    FrameError::NotWellFormed("a reference to no legal character"),
                    "{xml}"
                );
            }
        }
    }

    #[test]
    fn not_well_formed() {
        let cases = [
            "text",
            "<a/>text",
            "&amp;",
            "<![CDATA[x]]>",
            "<>",
            "< a/>",
            "<1/>",
            "<a <b/>",
            "<a b='<'/>",
            "<a & />",
            "<a>&</a>",
            "<a>& b;</a>",
            "<a b='&'/>",
            "<a></>",
            "<a></a b='c'>",
            "<a></<",
            "\0",
            "<a>\0</a>",
            "<a b='\u{1}'/>",
            "<a>\u{fffe}</a>",
            "<=/>",
            "</other>",
        ];
        for xml in cases {
            let (_, error) = frames(xml);
            let condition = error.as_ref().map(FrameError::condition);
            assert_eq!(condition, Some("not-well-formed"), "{xml:?}: {error:?}");
        }
    }

    #[test]
    fn only_utf8() {
        for bytes in [
            &b"<a>\xff</a>"[..],
            b"<a>\xed\xa0\x80</a>",
            b"<a>\xc0\x80</a>",
            b"<a b='\xc3'/>",
            b"\xfe\xff",
        ] {
            let error = error(bytes);
            assert_eq!(error, FrameError::NotUtf8, "{bytes:?}");
            assert_eq!(error.condition(), "unsupported-encoding");
        }
    }

    #[test]
    fn the_stream_ends_once() {
        assert_eq!(frames("</stream:stream > \n"), (vec![Frame::Close], None));
        let (seen, error) = frames("<a/></stream:stream><a/>");
        assert_eq!(seen, [Frame::Stanza("<a/>".into()), Frame::Close]);
        assert_eq!(error, Some(FrameError::AfterClose));
    }

    #[test]
    fn i7_a_stanza_has_so_many_bytes_and_no_more() {
        let exact = format!("<a>{}</a>", "x".repeat(LIMITS.stanza_bytes - 7));
        assert_eq!(frames(&exact), (vec![Frame::Stanza(exact.into())], None));
        let more = format!("<a>{}</a>", "x".repeat(LIMITS.stanza_bytes - 6));
        assert_eq!(frames(more), (vec![Frame::TooLarge], None));
        let error = error(format!("</{}", "x".repeat(LIMITS.stanza_bytes)));
        assert_eq!(error, FrameError::TooLarge { limit: LIMITS.stanza_bytes });
        assert_eq!(error.condition(), "policy-violation");
    }

    #[test]
    fn i7_nothing_grows_without_end() {
        let beginnings = [
            "<?xml ",
            "<s a='",
            "<s ",
            "<s><a b='",
            "<s><a ",
            "<s><a>",
            "<s><a><![CDATA[",
            "<s><a>&#",
            "<s></",
        ];
        for beginning in beginnings {
            let mut framer = Framer::new(LIMITS);
            framer.push(beginning.as_bytes());
            // Refused, or skipped without being kept.
            for _ in 0..3 * LIMITS.stanza_bytes {
                while let Ok(Some(_)) = framer.next() {}
                framer.push(b"0");
                assert!(framer.buffer().len() <= LIMITS.stanza_bytes + 1, "{beginning}");
                if let Some(error) = &framer.failed {
                    assert_eq!(*error, FrameError::TooLarge { limit: LIMITS.stanza_bytes });
                    break;
                }
            }
            let in_stanza = beginning.contains("<a") && !beginning.contains('&');
            assert_eq!(framer.failed.is_some(), !in_stanza, "{beginning}");
        }
    }

    #[test]
    fn i7_white_space_between_stanzas_is_not_kept() {
        let mut framer = Framer::new(LIMITS);
        framer.push(OPEN.as_bytes());
        assert_eq!(drain(&mut framer).1, None);
        for _ in 0..LIMITS.stanza_bytes {
            framer.push(b" \r\n\t");
            assert_eq!(framer.next(), Ok(None));
            assert_eq!(framer.buffer().len(), 0);
        }
        assert!(framer.buffer().capacity() < 64 * 1024);
    }

    #[test]
    fn i7_a_stanza_that_is_too_deep_is_left_out_and_the_stream_goes_on() {
        let nested = |levels| "<a>".repeat(levels) + "<a/>" + &"</a>".repeat(levels);
        let fits = nested(LIMITS.depth - 1);
        let deep = nested(LIMITS.depth);
        let all = format!("{deep}{fits}{deep}<b/>");
        let expected = [
            Frame::TooDeep,
            Frame::Stanza(fits.into()),
            Frame::TooDeep,
            Frame::Stanza("<b/>".into()),
        ];
        assert_eq!(frames(all), (expected.into(), None));
    }

    #[test]
    fn i7_a_stanza_that_is_too_large_is_left_out_and_the_stream_goes_on() {
        let large = |inside: &str| format!("<a>{}</a>", inside.repeat(LIMITS.stanza_bytes));
        for inside in ["x", "<b/>", "<b c='d'>e</b>", "&amp;", "<![CDATA[]]]]>", "<b c='&#65;'/>"] {
            let all = format!("{}<b/>{}<c/>", large(inside), large(inside));
            let expected = [
                Frame::TooLarge,
                Frame::Stanza("<b/>".into()),
                Frame::TooLarge,
                Frame::Stanza("<c/>".into()),
            ];
            assert_eq!(frames(&all), (expected.clone().into(), None), "{inside}");
            let mut framer = Framer::new(LIMITS);
            framer.push(OPEN.as_bytes());
            assert_eq!(drain(&mut framer).1, None);
            let mut seen = Vec::new();
            for part in all.as_bytes().chunks(7) {
                framer.push(part);
                seen.extend(drain(&mut framer).0);
                assert!(framer.buffer().len() <= LIMITS.stanza_bytes + 7);
            }
            assert_eq!(seen, expected, "{inside}");
        }
        // An endless tag of the stanza itself, and one of the stream's.
        let wide = format!("<a b='{}'/><c/>", "x".repeat(2 * LIMITS.stanza_bytes));
        let expected = vec![Frame::TooLarge, Frame::Stanza("<c/>".into())];
        assert_eq!(frames(wide), (expected, None));
        let limit = LIMITS.stanza_bytes;
        for endless in
            [format!("</{}", "x".repeat(2 * limit)), format!("<a>&{}", "x".repeat(2 * limit))]
        {
            assert_eq!(error(endless), FrameError::TooLarge { limit });
        }
    }

    #[test]
    fn i7_billion_laughs_stop_at_the_first_line() {
        let bomb = "<!DOCTYPE lolz [<!ENTITY lol \"lol\"><!ENTITY lol1 \"&lol;&lol;&lol;&lol;\">]><lolz>&lol1;</lolz>";
        let mut framer = Framer::new(LIMITS);
        framer.push(bomb.as_bytes());
        assert_eq!(framer.next(), Err(FrameError::Restricted("document type declaration")));
        assert_eq!(framer.buffer().capacity(), 0);
    }

    #[test]
    fn i7_work_is_linear_in_the_bytes_however_they_trickle() {
        let limits = Limits { stanza_bytes: 1 << 20, depth: 8 };
        let inside = "<b c='d>&amp;'><![CDATA[e]]f]]>&#65;g</b>".repeat(2_000);
        let stanza = format!("<a>{inside}</a>");
        let mut framer = Framer::new(limits);
        framer.push(b"<s>");
        assert_eq!(drain(&mut framer).1, None);
        let before = framer.scanner.work;
        for byte in stanza.as_bytes() {
            assert!(matches!(framer.next(), Ok(None)));
            framer.push(&[*byte]);
        }
        assert_eq!(drain(&mut framer).0.len(), 1);
        assert_eq!(framer.scanner.work - before, stanza.len());
    }
}
