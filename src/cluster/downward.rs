//! The downward API's file of a pod's annotations, as the kubelet writes it: a line `key="value"` each,
//! the value quoted as Go's `strconv.Quote` does, no newline at the end.
//!
//! Always true: a text that is not wholly of that form gives no annotations at all: a file that was read
//! while somebody was writing it must not look like one from which annotations were removed.

use std::collections::BTreeMap;
use std::str::Chars;

/// What is wrong with a file of annotations.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} {problem}")]
pub struct NotAnnotations {
    /// Counted from 1.
    pub line: usize,
    /// To be read after the line.
    pub problem: &'static str,
}

/// The annotations of the file.
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, NotAnnotations> {
    let mut annotations = BTreeMap::new();
    for (at, line) in text.split('\n').enumerate() {
        let wrong = |problem| NotAnnotations { line: at + 1, problem };
        if line.trim().is_empty() {
            continue; // by hand, files end in a newline
        }
        let (key, value) = line.split_once('=').ok_or(wrong("is not key=\"value\""))?;
        let value = unquote(value.trim_end_matches('\r')).map_err(wrong)?;
        if annotations.insert(key.to_owned(), value).is_some() {
            return Err(wrong("names a key a second time"));
        }
    }
    Ok(annotations)
}

/// The text that Go quoted. A byte that was no UTF-8 (`\xff`) becomes the replacement character: nothing
/// we look for has one.
fn unquote(quoted: &str) -> Result<String, &'static str> {
    let inner = quoted.strip_prefix('"').ok_or("has a value without quotation marks")?;
    let mut text = Vec::with_capacity(inner.len());
    let mut rest = inner.chars();
    loop {
        match rest.next().ok_or("has a value without an end")? {
            '"' => break,
            '\\' => escape(&mut rest, &mut text)?,
            c => push(&mut text, c),
        }
    }
    if !rest.as_str().is_empty() {
        return Err("goes on after its value");
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What follows a backslash.
fn escape(rest: &mut Chars<'_>, text: &mut Vec<u8>) -> Result<(), &'static str> {
    const STRANGE: &str = "has an escape that is none of Go's";
    let byte = match rest.next().ok_or("has a value without an end")? {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' => b'\\',
        '"' => b'"',
        'x' => u8::try_from(hex(rest, 2).ok_or(STRANGE)?).map_err(|_| STRANGE)?,
        long @ ('u' | 'U') => {
            let code = hex(rest, if long == 'u' { 4 } else { 8 }).ok_or(STRANGE)?;
            push(text, char::from_u32(code).ok_or(STRANGE)?);
            return Ok(());
        }
        _ => return Err(STRANGE),
    };
    text.push(byte);
    Ok(())
}

/// So many hexadecimal digits.
fn hex(rest: &mut Chars<'_>, count: usize) -> Option<u32> {
    let (digits, after) = rest.as_str().split_at_checked(count)?;
    let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
    *rest = after.chars();
    u32::from_str_radix(digits, 16).ok().filter(|_| plain)
}

fn push(text: &mut Vec<u8>, c: char) {
    text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `strconv.Quote`, as far as a test needs it: whatever is not plain ASCII is escaped.
    fn quote(text: &str) -> String {
        let escaped = |c: char| match c {
            '"' => "\\\"".into(),
            '\\' => "\\\\".into(),
            '\n' => "\\n".into(),
            '\t' => "\\t".into(),
            ' '..='~' => c.to_string(),
            c if c.is_ascii() => format!("\\x{:02x}", c as u32),
            c if (c as u32) < 0x1_0000 => format!("\\u{:04x}", c as u32),
            c => format!("\\U{:08x}", c as u32),
        };
        format!("\"{}\"", text.chars().map(escaped).collect::<String>())
    }

    #[test]
    fn a_file_as_the_kubelet_writes_it() {
        let text = concat!(
            "kubectl.kubernetes.io/last-applied-configuration=\"{\\\"a\\\":\\\"b=c\\\"}\\n\"\n",
            "kubernetes.io/config.source=\"api\"\n",
            "tidegate.dev/limit=\"5\"\n",
            "words=\"\\a\\b\\f\\r\\v\\x7f\\u00e9é\\U0001f30a\\xff\"",
        );
        let found = parse(text).expect("well-formed");
        assert_eq!(found["tidegate.dev/limit"], "5");
        assert_eq!(found["kubectl.kubernetes.io/last-applied-configuration"], "{\"a\":\"b=c\"}\n");
        assert_eq!(found["words"], "\u{7}\u{8}\u{c}\r\u{b}\u{7f}éé🌊\u{fffd}");
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn what_is_not_of_the_form_gives_nothing() {
        for (text, line) in [
            ("a=\"1\"\nb", 2),
            ("a=\"1\"\nb=\"2", 2),
            ("a=\"1\\", 1),
            ("a=1", 1),
            ("a=\"1\" b", 1),
            ("a=\"\\q\"", 1),
            ("a=\"\\x4\"", 1),
            ("a=\"\\u+041\"", 1),
            ("a=\"\\ud800\"", 1),
            ("a=\"1\"\n\na=\"2\"", 3),
            ("\0\0\0", 1),
        ] {
            assert_eq!(parse(text).expect_err(text).line, line, "{text:?}");
        }
        assert_eq!(parse("").expect("no annotations"), BTreeMap::new());
        assert_eq!(parse("a=\"1\"\r\n").expect("by hand")["a"], "1");
    }

    proptest! {
        #[test]
        fn what_was_quoted_is_found_again(pairs: BTreeMap<String, String>) {
            let plain = |key: &str| !key.trim().is_empty() && !key.contains(['=', '\n']);
            let pairs: BTreeMap<_, _> = pairs.into_iter().filter(|(key, _)| plain(key)).collect();
            let lines: Vec<_> = pairs.iter().map(|(k, v)| format!("{k}={}", quote(v))).collect();
            prop_assert_eq!(parse(&lines.join("\n")), Ok(pairs));
        }

        #[test]
        fn no_text_breaks_it(text: String) {
            let _ = parse(&text);
        }
    }
}
