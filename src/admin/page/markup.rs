//! Writing HTML so that nothing from outside can become part of it.
//!
//! Always true: names of elements and attributes are literals of the program; whatever else is
//! written is escaped; every element that is opened is closed.

use std::fmt::{self, Display, Write};

use super::super::story::is_visible;

/// HTML being written.
#[derive(Debug, Default)]
pub(super) struct Html(String);

/// Name and value.
pub(super) type Attribute<'a> = (&'static str, &'a dyn Display);

impl Html {
    /// An element with something inside.
    pub(super) fn tag(
        &mut self,
        name: &'static str,
        attributes: &[Attribute<'_>],
        inside: impl FnOnce(&mut Self),
    ) {
        self.void(name, attributes);
        inside(self);
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }

    /// An element with text inside.
    pub(super) fn leaf(
        &mut self,
        name: &'static str,
        attributes: &[Attribute<'_>],
        text: impl Display,
    ) {
        self.tag(name, attributes, |html| html.text(text));
    }

    /// An element that has no end.
    pub(super) fn void(&mut self, name: &'static str, attributes: &[Attribute<'_>]) {
        self.0.push('<');
        self.0.push_str(name);
        for (key, value) in attributes {
            self.0.push(' ');
            self.0.push_str(key);
            self.0.push_str("=\"");
            self.text(value);
            self.0.push('"');
        }
        self.0.push('>');
    }

    /// Text.
    pub(super) fn text(&mut self, text: impl Display) {
        write!(Escaped(&mut self.0), "{text}").expect("writing to a string cannot fail");
    }

    /// Markup, styles or a script of the program itself.
    pub(super) fn literal(&mut self, markup: &'static str) {
        self.0.push_str(markup);
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// What is written through this is text, inside an element as well as inside quotes.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(' '),
                c if is_visible(c) => self.0.push(c),
                _ => self.0.push('\u{fffd}'),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_are_escaped() {
        let mut html = Html::default();
        html.tag("p", &[("title", &"a\"b' c=d>")], |html| html.text("<b>&amp;\u{202e}\0\n"));
        assert_eq!(
            html.finish(),
            "<p title=\"a&quot;b&#39; c=d&gt;\">&lt;b&gt;&amp;amp;\u{fffd}\u{fffd} </p>"
        );
    }
}
