//! Bytes of strangers as text that can be shown to people: one word, without spaces, control
//! characters or anything that moves a cursor or turns text around.
//!
//! Always true: what is shown has one line, whatever the bytes are; two different byte sequences
//! look different, unless they were cut.

use std::fmt::{self, Write};

/// What strangers sent, ready to be written into a log, a terminal or JSON.
///
/// Printable characters stay. A backslash is doubled; other bytes and characters become `\x1b` or
/// `\u{202e}`. What is longer than it may be ends in `…`, which nothing else does.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    bytes: &'a [u8],
    cut: bool,
}

impl<'a> Shown<'a> {
    /// All of it.
    pub const fn all(bytes: &'a [u8]) -> Self {
        Self { bytes, cut: false }
    }

    /// What is left of something that was longer.
    pub const fn cut(bytes: &'a [u8]) -> Self {
        Self { bytes, cut: true }
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                write_char(f, c)?;
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        if self.cut { f.write_char('…') } else { Ok(()) }
    }
}

fn write_char(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    match c {
        '\\' => f.write_str("\\\\"),
        // Between two words of a log line they would end the one and begin another.
        '"' | ' ' | '\0'..='\x1f' | '\x7f' => write!(f, "\\x{:02x}", u32::from(c)),
        '!'..='~' => f.write_char(c),
        '…' => write!(f, "{}", c.escape_unicode()),
        // The standard library knows what can be printed.
        _ if c.escape_debug().count() == 1 => f.write_char(c),
        _ => write!(f, "{}", c.escape_unicode()),
    }
}

/// The bytes that were shown, if nothing was cut.
#[cfg(test)]
pub(crate) fn hidden(shown: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = shown;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c == '…' {
            return None;
        }
        if c != '\\' {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        } else if let Some(after) = rest.strip_prefix('\\') {
            bytes.push(b'\\');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('x') {
            bytes.push(u8::from_str_radix(after.get(..2)?, 16).ok()?);
            rest = &after[2..];
        } else {
            let (digits, after) = rest.strip_prefix("u{")?.split_once('}')?;
            let c = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            rest = after;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What terminals, log viewers and shells act upon.
    const NASTY: &str = "\r\n\t\0\x07\x08\x1b[31m\x7f\u{85}\u{9b}1m\u{a0}\u{ad}\u{200b}\u{2028}\u{2029}\u{202e}\u{feff}\u{e0001}…\\\" '=";

    #[test]
    fn what_can_be_read_stays_and_the_rest_is_spelled_out() {
        let shown = |bytes: &[u8]| Shown::all(bytes).to_string();
        assert_eq!(shown("/straße?ü='1'".as_bytes()), "/straße?ü='1'");
        assert_eq!(shown(b"a b\\\"\r\n\x1b[31m\xff"), r"a\x20b\\\x22\x0d\x0a\x1b[31m\xff");
        assert_eq!(shown("\u{202e}\u{2028}…".as_bytes()), r"\u{202e}\u{2028}\u{2026}");
        assert_eq!(Shown::cut(b"abc").to_string(), "abc…");
    }

    proptest! {
        #[test]
        fn any_bytes_are_one_word_and_can_be_had_back(bytes: Vec<u8>, nasty in 0..NASTY.len(), at: prop::sample::Index) {
            let mut bytes = bytes;
            let at = at.index(bytes.len() + 1);
            bytes.splice(at..at, NASTY.as_bytes()[nasty..].iter().copied());
            let shown = Shown::all(&bytes).to_string();
            prop_assert!(shown.chars().all(|c| !c.is_control() && !c.is_whitespace() && c != '"'), "{shown:?}");
            prop_assert!(shown.chars().all(|c| !"\u{202e}\u{feff}\u{200b}".contains(c)), "{shown:?}");
            prop_assert_eq!(hidden(&shown), Some(bytes));
        }
    }
}
