//! A document as it was written: the order of its keys, and where each thing begins.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Number, Value};
use serde_saphyr::Spanned;

/// A node of a document.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node<T> {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<T>),
    Map(Vec<(String, T)>),
}

/// With its place in the text.
pub(super) struct Placed(pub(super) Spanned<Node<Placed>>);

/// Without one: to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plain(pub(super) Node<Plain>);

/// Members that are read first, in this order.
const FIRST: [&str; 6] = ["apiVersion", "kind", "metadata", "name", "image", "restartPolicy"];

impl<'de> Deserialize<'de> for Placed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Node::deserialize(deserializer).map(Self)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Node<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor(std::marker::PhantomData))
    }
}

struct NodeVisitor<T>(std::marker::PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for NodeVisitor<T> {
    type Value = Node<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of Kubernetes")
    }

    fn visit_unit<E>(self) -> Result<Node<T>, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node<T>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node<T>, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node<T>, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node<T>, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node<T>, E> {
        Ok(Number::from_f64(value).map_or(Node::Null, Node::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node<T>, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node<T>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

impl Placed {
    pub(super) fn node(&self) -> &Node<Self> {
        &self.0.value
    }

    /// The node at the end of a path.
    pub(super) fn at(&self, path: &[String]) -> Option<&Self> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        let next = match self.node() {
            Node::Map(entries) => {
                entries.iter().find(|(key, _)| key == first).map(|(_, node)| node)
            }
            Node::List(items) => items.get(first.parse::<usize>().ok()?),
            _ => None,
        };
        next?.at(rest)
    }

    pub(super) fn plain(&self) -> Plain {
        Plain(match self.node() {
            Node::Null => Node::Null,
            Node::Bool(value) => Node::Bool(*value),
            Node::Number(value) => Node::Number(value.clone()),
            Node::Text(value) => Node::Text(value.clone()),
            Node::List(items) => Node::List(items.iter().map(Self::plain).collect()),
            Node::Map(entries) => {
                Node::Map(entries.iter().map(|(key, node)| (key.clone(), node.plain())).collect())
            }
        })
    }
}

impl Plain {
    pub(super) fn value(&self) -> Value {
        match &self.0 {
            Node::Null => Value::Null,
            Node::Bool(value) => Value::Bool(*value),
            Node::Number(value) => Value::Number(value.clone()),
            Node::Text(value) => Value::String(value.clone()),
            Node::List(items) => items.iter().map(Self::value).collect(),
            Node::Map(entries) => {
                entries.iter().map(|(key, node)| (key.clone(), node.value())).collect()
            }
        }
    }

    /// Make this the same data as that, in the order it has.
    pub(super) fn become_value(&mut self, value: &Value) {
        if self.value() == *value {
            return; // as it is written
        }
        match (&mut self.0, value) {
            (Node::Map(entries), Value::Object(map)) => {
                entries.retain(|(key, _)| map.contains_key(key));
                for (key, node) in entries.iter_mut() {
                    node.become_value(&map[key.as_str()]);
                }
                for (key, value) in map {
                    if !entries.iter().any(|(known, _)| known == key) {
                        entries.push((key.clone(), Self::from(value)));
                    }
                }
            }
            (Node::List(items), Value::Array(list)) => {
                // An element that is still there keeps its order, wherever it has come to be.
                let old = std::mem::take(items);
                let of = |value: &Value| value.get("name").cloned();
                for (at, value) in list.iter().enumerate() {
                    let named = of(value).and_then(|name| {
                        old.iter().find(|node| of(&node.value()).as_ref() == Some(&name))
                    });
                    let mut node = named.or(old.get(at)).cloned().unwrap_or(Self(Node::Null));
                    node.become_value(value);
                    items.push(node);
                }
            }
            (_, value) => *self = Self::from(value),
        }
    }
}

impl From<&Value> for Plain {
    fn from(value: &Value) -> Self {
        Self(match value {
            Value::Null => Node::Null,
            Value::Bool(value) => Node::Bool(*value),
            Value::Number(value) => Node::Number(value.clone()),
            Value::String(value) => Node::Text(value.clone()),
            Value::Array(list) => Node::List(list.iter().map(Self::from).collect()),
            Value::Object(map) => {
                let mut entries: Vec<_> =
                    map.iter().map(|(key, value)| (key.clone(), Self::from(value))).collect();
                let rank = |key: &str| FIRST.iter().position(|first| *first == key);
                entries.sort_by_key(|(key, _)| rank(key).unwrap_or(FIRST.len()));
                Node::Map(entries)
            }
        })
    }
}

impl Serialize for Plain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Node::Null => serializer.serialize_unit(),
            Node::Bool(value) => serializer.serialize_bool(*value),
            Node::Number(value) => value.serialize(serializer),
            Node::Text(value) => serializer.serialize_str(value),
            Node::List(items) => items.serialize(serializer),
            Node::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, node) in entries {
                    map.serialize_entry(key, node)?;
                }
                map.end()
            }
        }
    }
}
