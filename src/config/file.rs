//! The YAML file: the same words as everywhere, with the listeners and a section per port.
//!
//! ```yaml
//! listen:
//!   - {address: "0.0.0.0:8080", app: "127.0.0.1:3000"}
//! limit: 8
//! ports:
//!   8080: {queue-length: 32}
//! ```
//!
//! The file is read as a tree of texts with line numbers, so that every mistake in it is reported
//! and not only the first.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::listen::ListenText;
use super::pod::Pair;
use super::words::{Word, dotted, parse_port};
use super::{Mistakes, Origin};

/// What the file said.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) words: Vec<Word>,
    pub(super) listen: Vec<ListenText>,
}

/// A settings file is a screen or two; more is not one.
const MAX_BYTES: u64 = 1 << 20;

/// One node of the tree, with texts as they were written as far as YAML keeps that.
#[derive(Debug)]
enum Node {
    Nothing,
    Text(String),
    List(Vec<Spanned<Node>>),
    Map(Vec<(String, Spanned<Node>)>),
}

/// Read the file; what is wrong with it is noted.
pub(super) fn read(path: &Path, mistakes: &mut Mistakes) -> Said {
    let whole = Origin::File { path: path.to_owned(), line: None };
    let name = path.to_string_lossy();
    let text = match load(path) {
        Ok(text) => text,
        Err(problem) => {
            mistakes.add("config", Some(&name), "", problem);
            return Said::default();
        }
    };
    match tree(&text) {
        Ok(root) => Reader { path, mistakes }.root(root),
        Err(error) => {
            let error = error.without_snippet().to_string();
            mistakes.add("config", None, whole, format!("is not YAML we can read: {error}"));
            Said::default()
        }
    }
}

/// `mode: off` is a word: only `true` and `false` are truths, as in YAML 1.2.
fn tree(text: &str) -> Result<Node, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true })
}

/// The settings of a text that names no listeners, as pairs of texts with their lines.
pub(super) fn pairs(text: &str) -> Result<Vec<Pair>, String> {
    let root = tree(text)
        .map_err(|error| format!("is not YAML we can read: {}", error.without_snippet()))?;
    let entries = match root {
        Node::Map(entries) => entries,
        Node::Nothing => Vec::new(),
        _ => return Err("must be a mapping of settings, such as `limit: 5`".into()),
    };
    let mut pairs = Vec::new();
    for (name, node) in entries {
        let line = Some(node.referenced.line()).filter(|line| *line > 0);
        match node.value {
            Node::Map(sections) if name == "ports" => {
                for (port, section) in sections {
                    let Node::Map(entries) = section.value else {
                        return Err(
                            "has a `ports` that is no mapping such as `8080: {limit: 5}`".into()
                        );
                    };
                    pairs.extend(entries.into_iter().map(|(name, node)| {
                        let line = Some(node.referenced.line()).filter(|line| *line > 0);
                        let text = scalar(node.value).unwrap_or_default();
                        Pair { name: format!("{name}.{port}"), text, line }
                    }));
                }
            }
            value => pairs.push(Pair { name, text: scalar(value).unwrap_or_default(), line }),
        }
    }
    Ok(pairs)
}

fn load(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("cannot be read: {error}");
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err("is a directory; it must be a YAML file".into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err("is larger than 1 MiB; that is no settings file".into());
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".into())
}

struct Reader<'a> {
    path: &'a Path,
    mistakes: &'a mut Mistakes,
}

impl Reader<'_> {
    fn root(mut self, root: Node) -> Said {
        let mut said = Said::default();
        let entries = match root {
            Node::Map(entries) => entries,
            Node::Nothing => Vec::new(),
            _ => {
                self.mistakes.add("config", None, self.line(0), "must be a mapping of settings");
                return said;
            }
        };
        for (name, node) in entries {
            match name.as_str() {
                "listen" => self.listen(node, &mut said),
                "ports" => self.ports(node, &mut said),
                _ => self.setting(&name, None, node, &mut said),
            }
        }
        said
    }

    fn setting(&mut self, name: &str, port: Option<u16>, node: Spanned<Node>, said: &mut Said) {
        let origin = self.line(node.referenced.line());
        let Some((key, dotted_port)) = dotted(name, &origin, self.mistakes) else {
            return;
        };
        let Some(text) = scalar(node.value) else {
            self.mistakes.add(name, None, origin, format!("must be {}", key.kind.allowed()));
            return;
        };
        if port.is_some() && dotted_port.is_some() {
            self.mistakes.add(name, None, origin, "names a port inside the section of a port");
            return;
        }
        said.words.extend(Word::parse(key, port.or(dotted_port), text, origin, self.mistakes));
    }

    fn ports(&mut self, node: Spanned<Node>, said: &mut Said) {
        let origin = self.line(node.referenced.line());
        let Node::Map(sections) = node.value else {
            self.mistakes.add(
                "ports",
                None,
                origin,
                "must be a mapping such as `8080: {limit: 5}`",
            );
            return;
        };
        for (port, section) in sections {
            let origin = self.line(section.referenced.line());
            let port = parse_port("ports", &port, &origin, self.mistakes);
            match (port, section.value) {
                (None, _) | (_, Node::Nothing) => {}
                (port, Node::Map(entries)) => {
                    for (name, node) in entries {
                        self.setting(&name, port, node, said);
                    }
                }
                (Some(port), _) => {
                    let name = format!("ports.{port}");
                    self.mistakes.add(name, None, origin, "must be a mapping of settings");
                }
            }
        }
    }

    /// A list of `{address, app}` or `ADDR=APP`, or a mapping from address to app.
    fn listen(&mut self, node: Spanned<Node>, said: &mut Said) {
        let origin = self.line(node.referenced.line());
        match node.value {
            Node::Map(entries) => {
                for (address, app) in entries {
                    let origin = self.line(app.referenced.line());
                    match app.value {
                        Node::Text(app) => said.listen.push(ListenText { address, app, origin }),
                        _ => self.bad_listener(origin),
                    }
                }
            }
            Node::List(items) => items.into_iter().for_each(|item| self.listener(item, said)),
            Node::Text(text) => {
                said.listen.extend(ListenText::split(&text, origin, self.mistakes));
            }
            Node::Nothing => self.bad_listener(origin),
        }
    }

    fn listener(&mut self, item: Spanned<Node>, said: &mut Said) {
        let origin = self.line(item.referenced.line());
        let entries = match item.value {
            Node::Text(text) => {
                said.listen.extend(ListenText::split(&text, origin, self.mistakes));
                return;
            }
            Node::Map(entries) => entries,
            _ => return self.bad_listener(origin),
        };
        let (mut address, mut app) = (None, None);
        for (name, node) in entries {
            let origin = self.line(node.referenced.line());
            match (name.as_str(), scalar(node.value)) {
                ("address", text) => address = text,
                ("app", text) => app = text,
                _ => self.mistakes.add(
                    format!("listen.{name}"),
                    None,
                    origin,
                    "is unknown; a listener has `address` and `app`",
                ),
            }
        }
        match (address, app) {
            (Some(address), Some(app)) => said.listen.push(ListenText { address, app, origin }),
            _ => self.bad_listener(origin),
        }
    }

    fn bad_listener(&mut self, origin: Origin) {
        let problem = "needs both an address and an app, such as \
                       `{address: \"0.0.0.0:8080\", app: \"127.0.0.1:3000\"}`";
        self.mistakes.add("listen", None, origin, problem);
    }

    fn line(&self, line: u64) -> Origin {
        Origin::File { path: self.path.to_owned(), line: Some(line).filter(|line| *line > 0) }
    }
}

/// A text, or a list of texts written with commas. `key:` with nothing after it is the empty text.
fn scalar(node: Node) -> Option<String> {
    match node {
        Node::Text(text) => Some(text),
        Node::Nothing => Some(String::new()),
        Node::List(items) => {
            let texts: Option<Vec<_>> = items
                .into_iter()
                .map(|item| match item.value {
                    Node::Text(text) => Some(text),
                    _ => None,
                })
                .collect();
            texts.map(|texts| texts.join(","))
        }
        Node::Map(_) => None,
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("settings")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Nothing)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Nothing)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        // With the decimal point, so that 8.0 is not taken for the integer 8.
        Ok(Node::Text(format!("{value:?}")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}
