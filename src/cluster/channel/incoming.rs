//! The receiving end.

use bytes::{Buf, Bytes, BytesMut};

use super::ENTRY_BYTES;

/// What is to be done about a message that came.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Received {
    /// The sender has begun anew: what it had said before may be lost, and what it knew of this node
    /// it has forgotten. It comes before the entries.
    pub anew: bool,
    /// What has come, in order.
    pub entries: Vec<Bytes>,
    /// The sender is to be told what was received.
    pub ack: bool,
    /// The sender is to be told that its stream is unknown: the last one that was not.
    pub refuse: Option<u64>,
}

/// What has come from one other node.
#[derive(Debug, Default)]
pub struct Incoming {
    /// The stream that is known; zero: none is.
    stream: u64,
    /// The last batch that came.
    last: u64,
    /// The beginning of an entry.
    partial: BytesMut,
    /// The stream is over: its sender has to begin anew.
    over: bool,
}

impl Incoming {
    /// Up to which number of which stream all batches have come; zero: nothing is known.
    pub fn received(&self) -> (u64, u64) {
        if self.over { (0, 0) } else { (self.stream, self.last) }
    }

    /// A stream begins, or says so again.
    pub fn open(&mut self, stream: u64) -> Received {
        if stream < self.stream || (self.over && stream == self.stream) {
            return self.refuse();
        }
        if stream > self.stream {
            *self = Incoming { stream, ..Incoming::default() };
        }
        Received { ack: true, ..Received::default() }
    }

    /// A batch came.
    pub fn batch(&mut self, stream: u64, number: u64, body: Bytes) -> Received {
        if stream != self.stream || self.over {
            return self.refuse();
        }
        // What came before is confirmed again; what comes too early is sent again.
        if number != self.last + 1 {
            return Received { ack: true, ..Received::default() };
        }
        let mut entries = Vec::new();
        if !self.cut(body, &mut entries) {
            self.end();
            return self.refuse();
        }
        self.last = number;
        Received { anew: number == 1, entries, ack: true, refuse: None }
    }

    /// What the other has said counts no more: it has to begin anew.
    pub fn end(&mut self) {
        self.over = true;
        self.partial = BytesMut::new();
    }

    fn refuse(&self) -> Received {
        Received { refuse: Some(self.stream), ..Received::default() }
    }

    /// Cuts whole entries out. False: one is larger than any may be.
    fn cut(&mut self, mut body: Bytes, entries: &mut Vec<Bytes>) -> bool {
        if !self.partial.is_empty() {
            let Some(missing) = self.missing() else { return false };
            let more = missing.min(body.len());
            self.partial.extend_from_slice(&body[..more]);
            body.advance(more);
            // The length itself may have been cut.
            match self.missing() {
                None => return false,
                Some(0) => entries.push(self.partial.split().freeze().slice(LENGTH..)),
                Some(_) if body.is_empty() => return true,
                Some(_) => return self.cut(body, entries),
            }
        }
        while let Some(length) = length(&body) {
            if length > ENTRY_BYTES {
                return false;
            }
            if body.len() - LENGTH < length {
                break;
            }
            body.advance(LENGTH);
            entries.push(body.split_to(length));
        }
        self.partial.extend_from_slice(&body);
        true
    }

    /// How much is missing from the entry that has begun, as far as it is known; none: it is too
    /// large.
    fn missing(&self) -> Option<usize> {
        match length(&self.partial) {
            None => Some(LENGTH - self.partial.len()),
            Some(length) if length > ENTRY_BYTES => None,
            Some(length) => Some(LENGTH + length - self.partial.len()),
        }
    }
}

/// Bytes of a length.
pub(super) const LENGTH: usize = 4;

fn length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk::<LENGTH>()?;
    usize::try_from(u32::from_le_bytes(*length)).ok()
}
