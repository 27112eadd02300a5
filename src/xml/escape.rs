//! Escaping of text and attribute values.

use std::borrow::Cow;

/// Text as it may stand in an attribute value in single or double quotes.
///
/// Tab, line feed and carriage return become character references: a parser would
/// turn them into spaces otherwise (XML 1.0 section 3.3.3). Characters that XML
/// cannot carry are left out.
pub fn escape_attribute(text: &str) -> Cow<'_, str> {
    escape(text, |c| match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '\'' => Some("&apos;"),
        '"' => Some("&quot;"),
        '\t' => Some("&#9;"),
        '\n' => Some("&#10;"),
        '\r' => Some("&#13;"),
        c if unprintable(c) => Some(""),
        _ => None,
    })
}

/// Text as it may stand between tags. Characters that XML cannot carry are left out.
pub fn escape_text(text: &str) -> Cow<'_, str> {
    escape(text, |c| match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '\r' => Some("&#13;"),
        c if unprintable(c) => Some(""),
        _ => None,
    })
}

/// Outside XML 1.0's `Char` production.
fn unprintable(c: char) -> bool {
    matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}')
}

fn escape(text: &str, replace: impl Fn(char) -> Option<&'static str>) -> Cow<'_, str> {
    let Some(first) = text.find(|c| replace(c).is_some()) else {
        return Cow::Borrowed(text);
    };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        match replace(c) {
            Some(with) => out.push_str(with),
            None => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_no_escape_is_borrowed() {
        assert!(matches!(escape_text("it's \"fine\""), Cow::Borrowed(_)));
        assert!(matches!(escape_attribute("fine"), Cow::Borrowed(_)));
    }

    #[test]
    fn markup_and_control_characters() {
        assert_eq!(escape_text("a<b>&\r\0c"), "a&lt;b&gt;&amp;&#13;c");
        assert_eq!(escape_attribute("'\"\t\n\u{1f}"), "&apos;&quot;&#9;&#10;");
    }
}
