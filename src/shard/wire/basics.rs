//! Numbers, texts and lists as bytes, and back. A number takes seven bits a byte, the lowest
//! first; a text stands behind its length.

use std::sync::Arc;

use bytes::Bytes;

/// The bytes are not what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not what a node writes: {0}")]
pub struct Unreadable(pub &'static str);

/// What is written.
pub(super) type Out = Vec<u8>;

pub(super) fn number(out: &mut Out, mut n: u64) {
    while n >= 0x80 {
        out.push((n as u8) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// One that may be below zero.
pub(super) fn signed(out: &mut Out, n: i64) {
    number(out, n.cast_unsigned());
}

pub(super) fn flag(out: &mut Out, flag: bool) {
    out.push(u8::from(flag));
}

pub(super) fn bytes(out: &mut Out, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn text(out: &mut Out, text: &str) {
    bytes(out, text.as_bytes());
}

/// None, or what `write` writes of it.
pub(super) fn optional<T>(out: &mut Out, value: Option<T>, write: impl FnOnce(&mut Out, T)) {
    flag(out, value.is_some());
    if let Some(value) = value {
        write(out, value);
    }
}

/// How many, and each.
pub(super) fn list<T>(out: &mut Out, list: &[T], write: impl Fn(&mut Out, &T)) {
    number(out, list.len() as u64);
    for one in list {
        write(out, one);
    }
}

/// Reads what was written. What is cut out shares its memory.
pub(super) struct In {
    rest: Bytes,
}

impl In {
    pub(super) fn new(bytes: Bytes) -> Self {
        In { rest: bytes }
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), Unreadable> {
        if self.rest.is_empty() { Ok(()) } else { Err(Unreadable("something stands behind it")) }
    }

    /// All that is left.
    pub(super) fn rest(self) -> Bytes {
        self.rest
    }

    pub(super) fn byte(&mut self) -> Result<u8, Unreadable> {
        let first = *self.rest.first().ok_or(Unreadable("it ends too early"))?;
        let _ = self.rest.split_to(1);
        Ok(first)
    }

    pub(super) fn number(&mut self) -> Result<u64, Unreadable> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            n |= bits << shift;
            if byte & 0x80 == 0 {
                // One way to write each number.
                let shortest = byte != 0 || shift == 0;
                return if shortest { Ok(n) } else { Err(Unreadable("a number is padded")) };
            }
        }
        Err(Unreadable("a number is too large"))
    }

    pub(super) fn small(&mut self) -> Result<u32, Unreadable> {
        u32::try_from(self.number()?).map_err(|_| Unreadable("a number is too large"))
    }

    pub(super) fn size(&mut self) -> Result<usize, Unreadable> {
        usize::try_from(self.number()?).map_err(|_| Unreadable("a number is too large"))
    }

    pub(super) fn signed(&mut self) -> Result<i64, Unreadable> {
        Ok(self.number()?.cast_signed())
    }

    pub(super) fn flag(&mut self) -> Result<bool, Unreadable> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Unreadable("neither yes nor no")),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<Bytes, Unreadable> {
        let length = self.size()?;
        if length > self.rest.len() {
            return Err(Unreadable("it ends too early"));
        }
        Ok(self.rest.split_to(length))
    }

    fn with_text<T>(&mut self, make: impl FnOnce(&str) -> T) -> Result<T, Unreadable> {
        let bytes = self.bytes()?;
        let text = std::str::from_utf8(&bytes).map_err(|_| Unreadable("a text is not UTF-8"))?;
        Ok(make(text))
    }

    pub(super) fn text(&mut self) -> Result<Arc<str>, Unreadable> {
        self.with_text(|text| Arc::from(text))
    }

    pub(super) fn string(&mut self) -> Result<String, Unreadable> {
        self.with_text(str::to_owned)
    }

    pub(super) fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Unreadable>,
    ) -> Result<Option<T>, Unreadable> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    /// Each takes a byte at least, so that no more are made room for than there can be.
    pub(super) fn list<T>(
        &mut self,
        read: impl Fn(&mut Self) -> Result<T, Unreadable>,
    ) -> Result<Vec<T>, Unreadable> {
        let count = self.size()?;
        if count > self.rest.len() {
            return Err(Unreadable("it ends too early"));
        }
        // What is made room for is a small multiple of what is there.
        let mut list = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            list.push(read(self)?);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for n in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            number(&mut out, n);
            let mut from = In::new(out.into());
            assert_eq!(from.number(), Ok(n));
            assert_eq!(from.end(), Ok(()));
        }
    }

    #[test]
    fn i7_hostile_numbers_are_refused() {
        for bad in [
            &[][..],
            &[0x80],
            &[0x80, 0x00],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
            &[0xff; 11],
        ] {
            assert!(In::new(Bytes::copy_from_slice(bad)).number().is_err(), "{bad:?}");
        }
        assert!(In::new(vec![5, b'a'].into()).bytes().is_err(), "longer than there is");
        assert!(In::new(vec![0xff, 0xff, 0x7f].into()).list(In::byte).is_err());
        assert!(In::new(vec![2, 0xc3, 0x28].into()).text().is_err());
        assert!(In::new(vec![2].into()).flag().is_err());
    }
}
