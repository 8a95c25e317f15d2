//! A text in YAML is changed where a patch changes the data, and nowhere else: comments, order and style of
//! everything else stay.
//!
//! Always true: what comes out has been read again and is the data that was wanted. Where a text is written in a
//! way that cannot be edited like this, it is written anew as a whole, and that is said.

use json_patch::{Patch, PatchOperation};
use serde_json::Value;
use serde_saphyr::{options, ser_options};

use super::node::{Node, Placed, Plain};

/// A changed text.
#[derive(Debug, PartialEq)]
pub(super) struct Edited {
    pub(super) text: String,
    /// Whether only what had to change has changed.
    pub(super) in_place: bool,
}

/// The text that has this data, after the patch that leads there.
pub(super) fn edit(text: &str, patch: &Patch, wanted: &Value) -> Edited {
    let mut operations: Vec<&PatchOperation> = patch.0.iter().collect();
    // What is made empty for a moment would be null, so things are taken away last.
    operations.sort_by_key(|operation| matches!(operation, PatchOperation::Remove(_)));
    for order in [&operations, &patch.0.iter().collect()] {
        let edited =
            order.iter().try_fold(text.to_owned(), |text, operation| step(&text, operation));
        if let Some(edited) = edited
            && data(&edited).as_ref() == Some(wanted)
        {
            return Edited { text: edited, in_place: true };
        }
    }
    Edited { text: anew(text, wanted), in_place: false }
}

/// What a text says.
pub(super) fn data(text: &str) -> Option<Value> {
    parse(text).ok().map(|placed| placed.plain().value())
}

/// As kubectl reads it, to which `defaultMode: 0400` is 256.
pub(super) fn parse(text: &str) -> Result<Placed, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, options! { legacy_octal_numbers: true })
}

fn anew(text: &str, wanted: &Value) -> String {
    let mut plain = parse(text).map_or(Plain::from(wanted), |placed| placed.plain());
    plain.become_value(wanted);
    let is_head = |line: &&str| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line.starts_with("---")
    };
    let mut head: String = text.split_inclusive('\n').take_while(is_head).collect();
    if head.is_empty() && text.starts_with("---") {
        head = "---\n".into();
    }
    // Texts of several lines, such as files in ConfigMaps, stay readable.
    let options = ser_options! { folded_wrap_chars: usize::MAX, compact_list_indent: true };
    head + &rendered(&plain, options)
}

/// One operation, on a text that is read anew for each.
fn step(text: &str, operation: &PatchOperation) -> Option<String> {
    let root = parse(text).ok()?;
    let path = |pointer: &json_patch::jsonptr::PointerBuf| -> Vec<String> {
        pointer.tokens().map(|token| token.decoded().into_owned()).collect()
    };
    match operation {
        PatchOperation::Add(add) => {
            let path = path(&add.path);
            let (last, parent) = path.split_last()?;
            let parent = root.at(parent)?;
            let value = Plain::from(&add.value);
            match parent.node() {
                Node::Map(_) => add_member(text, parent, last, value),
                Node::List(items) => add_element(text, parent, items, last.parse().ok()?, value),
                _ => None,
            }
        }
        PatchOperation::Replace(replace) => {
            let place = root.at(&path(&replace.path))?;
            let simple =
                |node: &Node<_>| matches!(node, Node::Text(_) | Node::Number(_) | Node::Bool(_));
            let value = Plain::from(&replace.value);
            let is_simple = matches!(value.0, Node::Text(_) | Node::Number(_) | Node::Bool(_));
            if !is_simple || !simple(place.node()) {
                return None;
            }
            let (start, end) = span(place)?;
            let rendered = render(&value);
            let rendered = rendered.trim_end();
            (!rendered.contains('\n')).then(|| [&text[..start], rendered, &text[end..]].concat())
        }
        PatchOperation::Remove(remove) => {
            let path = path(&remove.path);
            let (last, parent) = path.split_last()?;
            let place = root.at(&path)?;
            let parent = root.at(parent)?;
            if is_flow(text, parent) {
                return without_in_flow(text, parent, last);
            }
            let lines = Lines::of(text);
            let (indent, is_list) = (column(text, parent)?, matches!(parent.node(), Node::List(_)));
            let first = if is_list {
                line(place)?
            } else {
                // The key is on the line of its value or above it.
                let begins = |at: &usize| {
                    lines.indent(*at) == Some(indent)
                        && lines.text[*at].trim_start().starts_with(last.as_str())
                };
                (0..=line(place)?).rev().find(begins)?
            };
            let first = if is_list {
                let begins = |at: &usize| {
                    lines.indent(*at) == Some(indent)
                        && lines.text[*at].trim_start().starts_with('-')
                };
                (0..=first).rev().find(begins)?
            } else {
                first
            };
            let after = lines.end_of_entry(
                first,
                indent,
                !is_list && matches!(place.node(), Node::List(_)),
            );
            Some(lines.without(first..after))
        }
        _ => None,
    }
}

fn add_member(text: &str, parent: &Placed, key: &str, value: Plain) -> Option<String> {
    if is_flow(text, parent) {
        return add_in_flow(
            text,
            parent,
            &format!("{}: {}", json(&key.into())?, json(&value.value())?),
        );
    }
    let indent = column(text, parent)?;
    let member = Plain(Node::Map(vec![(key.to_owned(), value)]));
    let lines = Lines::of(text);
    let at = lines.end(line(parent)?, |depth, _| depth >= indent);
    Some(lines.with(at, &indented(&render(&member), indent)))
}

fn add_element(
    text: &str,
    parent: &Placed,
    items: &[Placed],
    at: usize,
    value: Plain,
) -> Option<String> {
    if is_flow(text, parent) {
        return (at == items.len())
            .then(|| add_in_flow(text, parent, &json(&value.value())?))
            .flatten();
    }
    let indent = column(text, parent)?;
    let element = Plain(Node::List(vec![value]));
    let lines = Lines::of(text);
    let at = match items.get(at) {
        Some(next) => {
            let begins = |at: &usize| lines.indent(*at) == Some(indent);
            (0..=line(next)?).rev().find(begins)?
        }
        None => lines.end(line(parent)?, |depth, dash| depth > indent || depth == indent && dash),
    };
    Some(lines.with(at, &indented(&render(&element), indent)))
}

/// Before the bracket that closes it, and what is blank before that.
fn add_in_flow(text: &str, parent: &Placed, more: &str) -> Option<String> {
    let (start, _) = span(parent)?;
    let close = closing(text, start)?;
    let inside = text[start + 1..close].trim();
    let comma = if inside.is_empty() || inside.ends_with(',') { "" } else { ", " };
    let before = text[..close].trim_end_matches(' ');
    Some([before, comma, more, &text[before.len()..]].concat())
}

/// From the end of what is before it; what is first, to the beginning of what is next. Nothing empty is left.
fn without_in_flow(text: &str, parent: &Placed, gone: &str) -> Option<String> {
    let nodes: Vec<(String, &Placed)> = match parent.node() {
        Node::Map(entries) => entries.iter().map(|(key, node)| (key.clone(), node)).collect(),
        Node::List(items) => {
            items.iter().enumerate().map(|(at, node)| (at.to_string(), node)).collect()
        }
        _ => return None,
    };
    let end = |place: &Placed| match place.node() {
        Node::Map(_) | Node::List(_) => closing(text, span(place)?.0).map(|close| close + 1),
        _ => span(place).map(|(_, end)| end),
    };
    let at = nodes.iter().position(|(name, _)| name == gone)?;
    let end_of_gone = end(nodes[at].1)?;
    let (from, to) = match at.checked_sub(1).map(|before| nodes[before].1) {
        Some(before) => (end(before)?, end_of_gone),
        None => {
            let after = text[end_of_gone..].trim_start().strip_prefix(',')?.trim_start();
            (span(parent)?.0 + 1, text.len() - after.len())
        }
    };
    Some([&text[..from], &text[to..]].concat())
}

fn closing(text: &str, start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut quote = None;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(start) {
        match (quote, byte) {
            _ if escaped => escaped = false,
            (Some(b'"'), b'\\') => escaped = true,
            (Some(open), byte) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'{' | b'[') => depth += 1,
            (None, b'}' | b']') => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Where a node's text is. Of block collections only the beginning is meant.
fn span(place: &Placed) -> Option<(usize, usize)> {
    let span = place.0.defined.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    Some((start, start + usize::try_from(span.byte_len()?).ok()?))
}

/// From 0.
fn line(place: &Placed) -> Option<usize> {
    usize::try_from(place.0.defined.line()).ok()?.checked_sub(1)
}

/// From 0. A list whose dashes are as far left as its key is said to begin behind the first of them.
fn column(text: &str, place: &Placed) -> Option<usize> {
    let column = usize::try_from(place.0.defined.column()).ok()?.checked_sub(1)?;
    let (start, _) = span(place)?;
    let is_list = matches!(place.node(), Node::List(_)) && !text[start..].starts_with("- ");
    match text[..start].trim_end_matches(' ').strip_suffix('-') {
        Some(before) if is_list => column.checked_sub(start - before.len()),
        _ => Some(column),
    }
}

fn is_flow(text: &str, place: &Placed) -> bool {
    span(place).is_none_or(|(start, _)| text[start..].starts_with(['{', '[']))
}

fn json(value: &Value) -> Option<String> {
    serde_json::to_string(value).ok()
}

fn indented(text: &str, by: usize) -> String {
    let pad = " ".repeat(by);
    text.lines()
        .map(|line| if line.is_empty() { "\n".into() } else { format!("{pad}{line}\n") })
        .collect()
}

/// In YAML; every text on one line, so that `indented` cannot change it.
pub(super) fn render(plain: &Plain) -> String {
    let options = ser_options! { prefer_block_scalars: false, compact_list_indent: true };
    rendered(plain, options)
}

fn rendered(plain: &Plain, options: serde_saphyr::SerializerOptions) -> String {
    let text = serde_saphyr::to_string_with_options(plain, options);
    text.expect("it has no keys but texts, and writing to memory cannot fail")
}

/// A text by its lines.
struct Lines<'a> {
    text: Vec<&'a str>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        Self { text: text.split_inclusive('\n').collect() }
    }

    /// How far a line with something on it is indented.
    fn indent(&self, at: usize) -> Option<usize> {
        let line = self.text.get(at)?.trim_end();
        let content = line.trim_start_matches(' ');
        (!content.is_empty() && !content.starts_with('#')).then(|| line.len() - content.len())
    }

    /// The line after the last that belongs to what begins at `first`.
    fn end(&self, first: usize, belongs: impl Fn(usize, bool) -> bool) -> usize {
        let mut end = first + 1;
        for at in first + 1..self.text.len() {
            let Some(indent) = self.indent(at) else { continue };
            let content = self.text[at].trim_start();
            let marker = indent == 0 && (content.starts_with("---") || content.starts_with("..."));
            if marker || !belongs(indent, content.starts_with('-')) {
                break;
            }
            end = at + 1;
        }
        end
    }

    /// The same for one entry of a mapping or one element of a list.
    fn end_of_entry(&self, first: usize, indent: usize, holds_list: bool) -> usize {
        self.end(first, |depth, dash| depth > indent || holds_list && depth == indent && dash)
    }

    fn with(&self, at: usize, more: &str) -> String {
        let mut text = self.text[..at].concat();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text + more + &self.text[at..].concat()
    }

    fn without(&self, gone: std::ops::Range<usize>) -> String {
        self.text[..gone.start].concat() + &self.text[gone.end..].concat()
    }
}
