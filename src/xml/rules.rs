//! What XML 1.0 lets stand where: characters, names, references, attributes.
//!
//! The framer and the reader share these, so that they refuse the same bytes.

/// Why bytes are not XML text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadText {
    /// Not UTF-8.
    NotUtf8,
    /// A character outside the `Char` production, NUL say.
    IllegalChar,
}

/// The bytes as text, if they are UTF-8 and every character is one that XML carries.
pub(super) fn text(bytes: &[u8]) -> Result<&str, BadText> {
    let text = std::str::from_utf8(bytes).map_err(|_| BadText::NotUtf8)?;
    check_chars(text)?;
    Ok(text)
}

/// Whether every character of the text is one that XML carries (section 2.2).
pub(super) fn check_chars(text: &str) -> Result<(), BadText> {
    // No early exit: the compiler turns this into vector code.
    let control = text.bytes().fold(false, |bad, b| bad | (b < b' ' && !is_space(b)));
    let bad = control || (!text.is_ascii() && text.contains(['\u{fffe}', '\u{ffff}']));
    if bad { Err(BadText::IllegalChar) } else { Ok(()) }
}

/// White space (production 3).
pub(super) const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// The text without the white space it begins with.
pub(super) fn skip_space(text: &str) -> &str {
    let end = text.bytes().position(|b| !is_space(b)).unwrap_or(text.len());
    &text[end..]
}

/// Why a reference stands for no character.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadReference {
    /// An entity that is none of the five.
    UnknownEntity,
    /// A character reference that is malformed, or denotes no legal character.
    NoCharacter,
}

/// The character that `&name;` stands for: one of the five entities, or `#` and a number.
pub(super) fn reference(name: &[u8]) -> Result<char, BadReference> {
    match name {
        b"amp" => Ok('&'),
        b"lt" => Ok('<'),
        b"gt" => Ok('>'),
        b"apos" => Ok('\''),
        b"quot" => Ok('"'),
        [b'#', b'x', digits @ ..] => number(digits, 16),
        [b'#', digits @ ..] => number(digits, 10),
        _ => Err(BadReference::UnknownEntity),
    }
}

fn number(digits: &[u8], radix: u32) -> Result<char, BadReference> {
    if digits.is_empty() {
        return Err(BadReference::NoCharacter);
    }
    let mut value = 0u32;
    for &byte in digits {
        let digit = char::from(byte).to_digit(radix).ok_or(BadReference::NoCharacter)?;
        value = value.saturating_mul(radix).saturating_add(digit);
    }
    char::from_u32(value).filter(|c| is_char(*c)).ok_or(BadReference::NoCharacter)
}

/// The `Char` production (section 2.2).
const fn is_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Whether this may begin a name; a colon may not, see [`split_name`].
const fn begins_name(c: char) -> bool {
    matches!(c, 'a'..='z' | 'A'..='Z' | '_'
        | '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}' | '\u{f8}'..='\u{2ff}'
        | '\u{370}'..='\u{37d}' | '\u{37f}'..='\u{1fff}' | '\u{200c}' | '\u{200d}'
        | '\u{2070}'..='\u{218f}' | '\u{2c00}'..='\u{2fef}' | '\u{3001}'..='\u{d7ff}'
        | '\u{f900}'..='\u{fdcf}' | '\u{fdf0}'..='\u{fffd}' | '\u{10000}'..='\u{effff}')
}

const fn continues_name(c: char) -> bool {
    begins_name(c)
        || matches!(c, '-' | '.' | '0'..='9' | '\u{b7}' | '\u{300}'..='\u{36f}' | '\u{203f}' | '\u{2040}')
}

/// Whether the byte may follow `<` in a start tag; what it begins is checked later.
pub(super) const fn may_begin_tag(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | 0x80..)
}

/// A name without a colon (`NCName` of Namespaces in XML).
fn is_plain_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(begins_name) && chars.all(continues_name)
}

/// Prefix, empty for none, and local name; `None` for what is no qualified name.
pub(super) fn split_name(name: &str) -> Option<(&str, &str)> {
    let mut colon = None;
    let mut begins = true;
    for (at, byte) in name.bytes().enumerate() {
        begins = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => false,
            b'-' | b'.' | b'0'..=b'9' if !begins => false,
            b':' if !begins && colon.is_none() => {
                colon = Some(at);
                true
            }
            0x80.. => return split_wide_name(name),
            _ => return None,
        };
    }
    let prefixed = || colon.map_or(("", name), |at| (&name[..at], &name[at + 1..]));
    (!begins).then(prefixed)
}

/// The same, of a name with letters beyond ASCII.
fn split_wide_name(name: &str) -> Option<(&str, &str)> {
    let (prefix, local) = name.split_once(':').unwrap_or(("", name));
    let plain = is_plain_name(local) && (local.len() == name.len() || is_plain_name(prefix));
    plain.then_some((prefix, local))
}

/// Name and the rest of what stands between `<` and `>` or `/>`.
pub(super) fn split_tag(tag: &str) -> (&str, Attributes<'_>) {
    let end = tag.bytes().position(is_space).unwrap_or(tag.len());
    let (name, rest) = tag.split_at(end);
    (name, Attributes { rest })
}

/// Names and values as written, in order. After an error, nothing more comes.
pub(super) struct Attributes<'i> {
    rest: &'i str,
}

impl<'i> Attributes<'i> {
    fn one(&self, rest: &'i str) -> Result<((&'i str, &'i str), &'i str), &'static str> {
        if rest.len() == self.rest.len() {
            return Err("attributes without white space between");
        }
        let end = rest.bytes().position(|b| b == b'=' || is_space(b));
        let (name, rest) = rest.split_at(end.ok_or("an attribute without a value")?);
        let rest = skip_space(rest).strip_prefix('=').ok_or("an attribute without a value")?;
        let rest = skip_space(rest);
        let quote = rest.as_bytes().first().copied().filter(|q| matches!(q, b'\'' | b'"'));
        let quote = quote.ok_or("an attribute value without quotes")?;
        let rest = &rest[1..];
        let end = memchr::memchr(quote, rest.as_bytes()).ok_or("an attribute value without end")?;
        Ok(((name, &rest[..end]), &rest[end + 1..]))
    }
}

impl<'i> Iterator for Attributes<'i> {
    type Item = Result<(&'i str, &'i str), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = skip_space(self.rest);
        if rest.is_empty() {
            return None;
        }
        let one = self.one(rest);
        self.rest = one.as_ref().map_or("", |(_, rest)| rest);
        Some(one.map(|(attribute, _)| attribute))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let good = [
            ("amp", '&'),
            ("lt", '<'),
            ("gt", '>'),
            ("apos", '\''),
            ("quot", '"'),
            ("#65", 'A'),
            ("#x41", 'A'),
            ("#x000000000000041", 'A'),
            ("#9", '\t'),
            ("#x10FFFF", '\u{10ffff}'),
            ("#xd7ff", '\u{d7ff}'),
        ];
        for (name, c) in good {
            assert_eq!(reference(name.as_bytes()), Ok(c), "{name}");
        }
        let none = [
            "#0",
            "#x0",
            "#8",
            "#xD800",
            "#xDFFF",
            "#xFFFE",
            "#xffff",
            "#x110000",
            "#",
            "#x",
            "#X41",
            "#-1",
            "#+65",
            "#6 5",
            "#xg",
            "#4294967361",
            "#99999999999999999999",
            "#x100000041",
        ];
        for name in none {
            assert_eq!(reference(name.as_bytes()), Err(BadReference::NoCharacter), "{name}");
        }
        for name in ["", "nbsp", "AMP", "lol9", "amp ", "\u{e9}"] {
            assert_eq!(reference(name.as_bytes()), Err(BadReference::UnknownEntity), "{name}");
        }
    }

    #[test]
    fn names() {
        assert_eq!(split_name("a"), Some(("", "a")));
        assert_eq!(split_name("xml:lang"), Some(("xml", "lang")));
        assert_eq!(split_name("p\u{e9}:n"), Some(("p\u{e9}", "n")));
        assert_eq!(split_name("_a-b.c\u{e9}1"), Some(("", "_a-b.c\u{e9}1")));
        for bad in [
            "",
            ":",
            "a:",
            ":a",
            "a:b:c",
            "1a",
            "-a",
            "a:1",
            "a<b",
            "a/b",
            "a\u{d7}",
            "a'b",
            "a&b",
            "a,b",
            "\u{e9}:",
            ":\u{e9}",
            "\u{e9}:\u{e9}:a",
            "\u{b7}",
        ] {
            assert_eq!(split_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn attributes() {
        let read = |tag| split_tag(tag).1.collect::<Result<Vec<_>, _>>();
        assert_eq!(read("a"), Ok(vec![]));
        assert_eq!(read("a \t\r\n"), Ok(vec![]));
        assert_eq!(read("a b='1' c = \"'>\" "), Ok(vec![("b", "1"), ("c", "'>")]));
        for bad in ["a b", "a b=", "a b=1", "a b='1", "a b='1'c='2'", "a b c='1'", "a ='1' /"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn characters() {
        assert_eq!(text("tab\t\r\n\u{7f}\u{85}\u{fffd}\u{ff0c}".as_bytes()).err(), None);
        assert_eq!(text(b"\xc3\x28").err(), Some(BadText::NotUtf8));
        assert_eq!(text(b"\xed\xa0\x80").err(), Some(BadText::NotUtf8), "a surrogate");
        for bad in ["\0", "a\u{1f}", "\u{b}", "\u{fffe}", "\u{ffff}"] {
            assert_eq!(text(bad.as_bytes()).err(), Some(BadText::IllegalChar), "{bad:?}");
        }
    }
}
