//! Reading Rust: words and signs with their lines, without strings and comments.

use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Word(String),
    Sign(char),
    /// A string, a character or a lifetime.
    Other,
}

#[derive(Default)]
pub struct Code {
    /// Each with its line, from 1.
    pub tokens: Vec<(usize, Token)>,
    /// The text of the comment on a line, from 1.
    pub comments: BTreeMap<usize, String>,
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

impl Code {
    pub fn read(text: &str) -> Code {
        let mut code = Code::default();
        let (mut rest, mut line) = (text, 1);
        while let Some(c) = rest.chars().next() {
            let length = match c {
                '/' if rest.starts_with("//") => code.comment(line, rest, rest.find('\n')),
                '/' if rest.starts_with("/*") => code.comment(line, rest, block_comment(rest)),
                '"' => code.put(line, Token::Other, string(rest)),
                '\'' => code.put(line, Token::Other, character(rest)),
                c if is_word(c) => match prefixed_string(rest) {
                    Some(length) => code.put(line, Token::Other, length),
                    None => {
                        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                        code.put(line, Token::Word(rest[..length].to_owned()), length)
                    }
                },
                c if c.is_whitespace() => c.len_utf8(),
                c => code.put(line, Token::Sign(c), c.len_utf8()),
            };
            line += rest[..length].matches('\n').count();
            rest = &rest[length..];
        }
        code
    }

    fn put(&mut self, line: usize, token: Token, length: usize) -> usize {
        self.tokens.push((line, token));
        length
    }

    fn comment(&mut self, line: usize, rest: &str, length: Option<usize>) -> usize {
        let length = length.unwrap_or(rest.len());
        for (offset, text) in rest[..length].lines().enumerate() {
            self.comments.entry(line + offset).or_default().push_str(text);
        }
        length
    }

    pub fn is(&self, at: usize, sign: char) -> bool {
        self.tokens.get(at).is_some_and(|(_, token)| *token == Token::Sign(sign))
    }

    pub fn word(&self, at: usize) -> Option<&str> {
        match self.tokens.get(at) {
            Some((_, Token::Word(word))) => Some(word),
            _ => None,
        }
    }

    /// Where the bracket that opens at `open` is closed.
    fn close(&self, open: usize) -> usize {
        let mut depth = 0;
        for at in open..self.tokens.len() {
            match self.tokens[at].1 {
                Token::Sign('(' | '[' | '{') => depth += 1,
                Token::Sign(')' | ']' | '}') => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return at;
            }
        }
        self.tokens.len()
    }

    /// For each token whether it is in an item under `#[cfg(test)]`, and the names of the
    /// test modules that are files of their own.
    pub fn tests(&self) -> (Vec<bool>, Vec<String>) {
        let mut inside = vec![false; self.tokens.len()];
        let mut files = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            let start = at;
            at += 1;
            if !(self.is(start, '#')
                && self.is(start + 1, '[')
                && self.word(start + 2) == Some("cfg"))
            {
                continue;
            }
            let end = self.close(start + 1);
            let words = |word| (start..end).any(|at| self.word(at) == Some(word));
            if !words("test") || words("not") {
                continue;
            }
            at = end + 1;
            while self.is(at, '#') {
                at = self.close(at + 1) + 1;
            }
            let item = at;
            while at < self.tokens.len() && !self.is(at, ';') && !self.is(at, '{') {
                at = if self.is(at, '(') || self.is(at, '[') { self.close(at) + 1 } else { at + 1 };
            }
            if self.is(at, '{') {
                at = self.close(at);
            } else if let Some(name) = (item..at).find(|&at| self.word(at) == Some("mod")) {
                files.extend(self.word(name + 1).map(str::to_owned));
            }
            let last = at.min(self.tokens.len() - 1);
            inside[start..=last].fill(true);
        }
        (inside, files)
    }

    /// Every path, groups spread out: `use a::{b, c::d}` is `a::b` and `a::c::d`. Each with
    /// the place of its first token. A single word is a path of one.
    pub fn paths(&self) -> Vec<(usize, Vec<&str>)> {
        let mut paths = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            at = match self.word(at) {
                Some(_) => self.path(at, &[], &mut paths),
                None => at + 1,
            };
        }
        paths
    }

    /// Reads one path from `at` on, under `prefix`; gives where it ends.
    fn path<'a>(
        &'a self,
        mut at: usize,
        prefix: &[&'a str],
        paths: &mut Vec<(usize, Vec<&'a str>)>,
    ) -> usize {
        let start = at;
        let mut path = prefix.to_vec();
        while let Some(word) = self.word(at) {
            path.push(word);
            at += 1;
            if !(self.is(at, ':') && self.is(at + 1, ':')) {
                break;
            }
            at += 2;
            if self.is(at, '{') {
                let end = self.close(at);
                while at < end {
                    at = if self.word(at).is_some() { self.path(at, &path, paths) } else { at + 1 };
                }
                return end;
            }
        }
        paths.push((start, path));
        at.max(start + 1)
    }

    /// For each token, how many `mod name { }` of this file it is in.
    pub fn depths(&self) -> Vec<usize> {
        let mut depths = vec![0; self.tokens.len()];
        for at in 0..self.tokens.len() {
            if self.word(at) == Some("mod") && self.word(at + 1).is_some() && self.is(at + 2, '{') {
                let end = self.close(at + 2).min(self.tokens.len());
                depths[at + 2..end].iter_mut().for_each(|depth| *depth += 1);
            }
        }
        depths
    }
}

/// The length of the block comment, with those in it, that `rest` begins with.
fn block_comment(rest: &str) -> Option<usize> {
    let (mut at, mut depth) = (0, 0);
    while at < rest.len() {
        let tail = &rest.as_bytes()[at..];
        at += match tail {
            [b'/', b'*', ..] => {
                depth += 1;
                2
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// The length of the string in quotes that `rest` begins with.
fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of `'x'`, or of the quote alone where it begins a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some(_)) => {
            chars.find(|(_, c)| *c == '\'').map_or(rest.len(), |(at, _)| at + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

/// The length of `r"..."`, `br#"..."#`, `b"..."`, `b'x'` and the like.
fn prefixed_string(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r"].into_iter().find(|prefix| {
        let tail = rest.strip_prefix(prefix).unwrap_or_default();
        tail.starts_with(['"', '\''])
            || tail.trim_start_matches('#').starts_with('"') && tail.starts_with('#')
    })?;
    let tail = &rest[prefix.len()..];
    if tail.starts_with('\'') {
        return (prefix == "b").then(|| prefix.len() + character(tail));
    }
    if !prefix.contains('r') {
        return tail.starts_with('"').then(|| prefix.len() + string(tail));
    }
    let hashes = tail.len() - tail.trim_start_matches('#').len();
    let end = format!("\"{}", "#".repeat(hashes));
    let body = prefix.len() + hashes + 1;
    Some(rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len()))
}
