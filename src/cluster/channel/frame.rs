//! One message of NATS between two nodes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::shard::wire::VERSION;

/// Bytes of a head.
pub const HEAD: usize = 1 + 1 + 4 + 8 + 8 + 8 + 8;

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A stream begins. It stands before its first batch, which has the number 1.
    Open,
    /// A batch of a stream.
    Batch,
    /// What was received; nothing else.
    Ack,
    /// The stream is not known, or is over: the number is that of the last one that was.
    Refuse,
}

/// What stands in front of each message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// What it is.
    pub kind: Kind,
    /// The number of the incarnation that says it.
    pub from: u32,
    /// The stream. In [`Kind::Ack`] zero.
    pub stream: u64,
    /// The number of the batch; see [`Kind`].
    pub number: u64,
    /// The stream of the other direction, and up to which number its batches have come. Zero: there
    /// is none.
    pub acked: (u64, u64),
}

/// A message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// What it is.
    pub head: Head,
    /// Of a batch.
    pub body: Bytes,
}

/// It is none of this version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// It is too short, or of no known kind.
    #[error("not a message between nodes")]
    Malformed,
    /// Another version writes it.
    #[error("a message between nodes of version {0}, where this node has {VERSION}")]
    Version(u8),
}

impl Frame {
    /// As bytes.
    pub fn write(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEAD + self.body.len());
        out.put_u8(VERSION);
        out.put_u8(match self.head.kind {
            Kind::Open => 1,
            Kind::Batch => 2,
            Kind::Ack => 3,
            Kind::Refuse => 4,
        });
        out.put_u32_le(self.head.from);
        out.put_u64_le(self.head.stream);
        out.put_u64_le(self.head.number);
        out.put_u64_le(self.head.acked.0);
        out.put_u64_le(self.head.acked.1);
        out.extend_from_slice(&self.body);
        out.freeze()
    }

    /// From bytes, which the body shares.
    ///
    /// # Errors
    ///
    /// No node of this version writes that.
    pub fn read(mut bytes: Bytes) -> Result<Frame, FrameError> {
        let version = *bytes.first().ok_or(FrameError::Malformed)?;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if bytes.len() < HEAD {
            return Err(FrameError::Malformed);
        }
        bytes.advance(1);
        let kind = match bytes.get_u8() {
            1 => Kind::Open,
            2 => Kind::Batch,
            3 => Kind::Ack,
            4 => Kind::Refuse,
            _ => return Err(FrameError::Malformed),
        };
        let head = Head {
            kind,
            from: bytes.get_u32_le(),
            stream: bytes.get_u64_le(),
            number: bytes.get_u64_le(),
            acked: (bytes.get_u64_le(), bytes.get_u64_le()),
        };
        if kind != Kind::Batch && !bytes.is_empty() {
            return Err(FrameError::Malformed);
        }
        Ok(Frame { head, body: bytes })
    }
}
