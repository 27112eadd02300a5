//! Where the next whole piece of a stream ends. Resumable: it keeps its place and its
//! state, so bytes that come one at a time are looked at once all the same.

use super::frame::FrameError;
use super::rules::{self, BadReference, is_space};

/// A piece that ends where the scanner stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Piece {
    /// `<?...?>`, the first thing in the stream.
    Declaration,
    /// The start tag of the stream.
    Open,
    /// A whole child of the stream.
    Stanza,
    /// A whole child of the stream that nests deeper than it may.
    TooDeep,
    /// The end tag of the stream.
    Close,
}

/// What the byte at the scanner's place is part of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nothing: a piece may begin here.
    Between,
    /// Character data in a stanza.
    Text,
    /// A reference; in an attribute value, the quote that ends that value.
    Reference { start: usize, quote: Option<u8> },
    /// What follows `<`.
    Markup,
    /// `<!`, with so many bytes of `[CDATA[` seen.
    Bang(usize),
    /// Inside CDATA, with so many `]` just seen, at most two.
    Cdata(u8),
    /// The XML declaration; whether the last byte was `?`.
    Declaration(bool),
    /// A start tag, outside its attribute values.
    StartTag,
    /// An attribute value, with the quote that ends it.
    Value(u8),
    /// An end tag.
    EndTag,
}

/// The scanner's place in the current piece, which begins at byte 0.
#[derive(Debug)]
pub(super) struct Scanner {
    at: usize,
    state: State,
    /// Elements open in the current stanza.
    depth: usize,
    max_depth: usize,
    /// The current stanza has gone deeper.
    too_deep: bool,
    /// The stream's start tag was seen.
    open: bool,
    /// Nothing at all came before this piece.
    first: bool,
    /// Bytes looked at, ever.
    #[cfg(test)]
    pub(super) work: usize,
}

impl Scanner {
    /// A scanner at the very beginning of a stream.
    pub(super) fn new(max_depth: usize) -> Self {
        Scanner {
            at: 0,
            state: State::Between,
            depth: 0,
            max_depth,
            too_deep: false,
            open: false,
            first: true,
            #[cfg(test)]
            work: 0,
        }
    }

    /// Whether it stands between pieces, where white space means nothing.
    pub(super) fn is_between(&self) -> bool {
        self.state == State::Between
    }

    /// White space was dropped: an XML declaration may not follow it.
    pub(super) fn skipped(&mut self) {
        self.first = false;
    }

    /// Whether it stands in a child of the stream.
    pub(super) fn is_in_stanza(&self) -> bool {
        let closing = self.depth == 0 && self.state == State::EndTag;
        self.open && self.state != State::Between && !closing
    }

    /// How many of the bytes given before are not needed any more; the next call of
    /// [`Scanner::run`] begins behind them.
    pub(super) fn forget(&mut self) -> usize {
        // The byte before the present one may be asked for.
        let mut done = self.at.saturating_sub(1);
        if let State::Reference { start, .. } = &mut self.state {
            done = done.min(*start);
            *start -= done;
        }
        self.at -= done;
        done
    }

    /// Goes on to the end of the piece, or of the bytes. `bytes` begins with what was
    /// given before. Returns the piece and its length; the next call is about what
    /// follows it.
    pub(super) fn run(&mut self, bytes: &[u8]) -> Result<Option<(Piece, usize)>, FrameError> {
        while self.at < bytes.len() {
            let piece = self.step(bytes)?;
            if let Some(piece) = piece {
                let length = std::mem::take(&mut self.at);
                self.state = State::Between;
                self.first = false;
                return Ok(Some((piece, length)));
            }
        }
        Ok(None)
    }

    #[inline]
    fn step(&mut self, bytes: &[u8]) -> Result<Option<Piece>, FrameError> {
        match self.state {
            State::Text => self.text(bytes),
            State::Markup => return self.markup(bytes),
            State::StartTag => return self.start_tag(bytes),
            State::Value(quote) => return self.value(bytes, quote).map(|()| None),
            State::EndTag => return self.end_tag(bytes),
            State::Between => return self.between(bytes).map(|()| None),
            State::Reference { start, quote } => {
                return self.reference(bytes, start, quote).map(|()| None);
            }
            State::Bang(seen) => return self.bang(bytes, seen).map(|()| None),
            State::Cdata(brackets) => self.cdata(bytes, brackets),
            State::Declaration(question) => return Ok(self.declaration(bytes, question)),
        }
        Ok(None)
    }

    /// Moves behind what was looked at.
    #[inline]
    fn go(&mut self, to: usize, state: State) {
        #[cfg(test)]
        {
            self.work += to - self.at;
        }
        self.at = to;
        self.state = state;
    }

    #[inline]
    fn text(&mut self, bytes: &[u8]) {
        match memchr::memchr2(b'<', b'&', &bytes[self.at..]) {
            None => self.go(bytes.len(), State::Text),
            Some(n) => {
                let next = self.at + n + 1;
                let state = if bytes[next - 1] == b'<' {
                    State::Markup
                } else {
                    State::Reference { start: next, quote: None }
                };
                self.go(next, state);
            }
        }
    }

    #[inline]
    fn markup(&mut self, bytes: &[u8]) -> Result<Option<Piece>, FrameError> {
        let state = match bytes[self.at] {
            b'/' if self.open => State::EndTag,
            b'!' => State::Bang(0),
            b'?' if self.first => State::Declaration(false),
            b'?' => return Err(FrameError::Restricted("processing instruction")),
            byte if rules::may_begin_tag(byte) => {
                self.too_deep |= self.open && self.depth >= self.max_depth;
                State::StartTag
            }
            _ => return Err(FrameError::NotWellFormed("'<' that begins no tag")),
        };
        self.go(self.at + 1, state);
        Ok(None)
    }

    #[inline]
    fn start_tag(&mut self, bytes: &[u8]) -> Result<Option<Piece>, FrameError> {
        let Some(n) =
            bytes[self.at..].iter().position(|b| matches!(b, b'>' | b'\'' | b'"' | b'<' | b'&'))
        else {
            self.go(bytes.len(), State::StartTag);
            return Ok(None);
        };
        let place = self.at + n;
        match bytes[place] {
            b'>' => {
                self.go(place + 1, State::Text);
                self.started(bytes[place - 1] == b'/')
            }
            quote @ (b'\'' | b'"') => {
                self.go(place + 1, State::Value(quote));
                Ok(None)
            }
            _ => Err(FrameError::NotWellFormed("'<' or '&' in a tag")),
        }
    }

    /// A start tag ended.
    #[inline]
    fn started(&mut self, empty: bool) -> Result<Option<Piece>, FrameError> {
        if !self.open {
            self.open = true;
            return if empty {
                Err(FrameError::NotWellFormed("a stream without content"))
            } else {
                Ok(Some(Piece::Open))
            };
        }
        if !empty {
            self.depth += 1;
        }
        Ok((self.depth == 0).then(|| self.stanza()))
    }

    fn stanza(&mut self) -> Piece {
        if std::mem::take(&mut self.too_deep) { Piece::TooDeep } else { Piece::Stanza }
    }

    #[inline]
    fn value(&mut self, bytes: &[u8], quote: u8) -> Result<(), FrameError> {
        match memchr::memchr3(quote, b'<', b'&', &bytes[self.at..]) {
            None => self.go(bytes.len(), State::Value(quote)),
            Some(n) => {
                let next = self.at + n + 1;
                let state = match bytes[next - 1] {
                    b'<' => return Err(FrameError::NotWellFormed("'<' in an attribute value")),
                    b'&' => State::Reference { start: next, quote: Some(quote) },
                    _ => State::StartTag,
                };
                self.go(next, state);
            }
        }
        Ok(())
    }

    #[inline]
    fn end_tag(&mut self, bytes: &[u8]) -> Result<Option<Piece>, FrameError> {
        let Some(n) =
            bytes[self.at..].iter().position(|b| matches!(b, b'>' | b'\'' | b'"' | b'<' | b'&'))
        else {
            self.go(bytes.len(), State::EndTag);
            return Ok(None);
        };
        let place = self.at + n;
        if bytes[place] != b'>' || bytes[place - 1] == b'/' {
            return Err(FrameError::NotWellFormed("an end tag that is more or less than a name"));
        }
        self.go(place + 1, State::Text);
        if self.depth == 0 {
            return Ok(Some(Piece::Close));
        }
        self.depth -= 1;
        Ok((self.depth == 0).then(|| self.stanza()))
    }

    fn between(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        match bytes[self.at] {
            b'<' => self.go(self.at + 1, State::Markup),
            // Bytes that UTF-8 never has: UTF-16 begins so.
            0xc0 | 0xc1 | 0xf5.. => return Err(FrameError::NotUtf8),
            _ => return Err(FrameError::NotWellFormed("text between stanzas")),
        }
        Ok(())
    }

    fn reference(
        &mut self,
        bytes: &[u8],
        start: usize,
        quote: Option<u8>,
    ) -> Result<(), FrameError> {
        let name = |b: &u8| {
            b.is_ascii_alphanumeric() || matches!(b, b'#' | b'_' | b'-' | b'.' | b':' | 0x80..)
        };
        let Some(n) = bytes[self.at..].iter().position(|b| !name(b)) else {
            self.go(bytes.len(), State::Reference { start, quote });
            return Ok(());
        };
        let end = self.at + n;
        if bytes[end] != b';' {
            return Err(FrameError::NotWellFormed("'&' that begins no reference"));
        }
        match rules::reference(&bytes[start..end]) {
            Ok(_) => self.go(end + 1, quote.map_or(State::Text, State::Value)),
            Err(BadReference::UnknownEntity) => return Err(FrameError::UnknownEntity),
            Err(BadReference::NoCharacter) => {
                return Err(FrameError::NotWellFormed("a reference to no legal character"));
            }
        }
        Ok(())
    }

    fn bang(&mut self, bytes: &[u8], seen: usize) -> Result<(), FrameError> {
        const CDATA: &[u8] = b"[CDATA[";
        let byte = bytes[self.at];
        if byte != CDATA[seen] {
            let what = match (seen, byte) {
                (0, b'-') => "comment",
                (0, b'D') => "document type declaration",
                _ => "markup declaration",
            };
            return Err(FrameError::Restricted(what));
        }
        if self.depth == 0 {
            return Err(FrameError::NotWellFormed("text between stanzas"));
        }
        let whole = seen + 1 == CDATA.len();
        self.go(self.at + 1, if whole { State::Cdata(0) } else { State::Bang(seen + 1) });
        Ok(())
    }

    fn cdata(&mut self, bytes: &[u8], brackets: u8) {
        if brackets == 0 {
            return match memchr::memchr(b']', &bytes[self.at..]) {
                None => self.go(bytes.len(), State::Cdata(0)),
                Some(n) => self.go(self.at + n + 1, State::Cdata(1)),
            };
        }
        let state = match bytes[self.at] {
            b']' => State::Cdata(2),
            b'>' if brackets == 2 => State::Text,
            _ => State::Cdata(0),
        };
        self.go(self.at + 1, state);
    }

    fn declaration(&mut self, bytes: &[u8], question: bool) -> Option<Piece> {
        let byte = bytes[self.at];
        self.go(self.at + 1, State::Declaration(byte == b'?'));
        (question && byte == b'>').then_some(Piece::Declaration)
    }
}

/// How many bytes of white space these begin with.
pub(super) fn white_space(bytes: &[u8]) -> usize {
    bytes.iter().position(|b| !is_space(*b)).unwrap_or(bytes.len())
}
