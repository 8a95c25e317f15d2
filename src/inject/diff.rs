//! The difference of two pods as a JSON patch that API servers and people like: what is added is added where it
//! belongs, and a list is never replaced as a whole.
//!
//! Always true: applied to the one it gives the other. Elements of lists that have a name are the same element if
//! they have the same name, wherever they are; the order of those that both have must not differ, which holds
//! here because nothing is ever moved.

use std::borrow::Cow;
use std::collections::HashMap;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation};
use serde_json::Value;

/// What has to be done to `from` so that it is `to`.
pub(super) fn diff(from: &Value, to: &Value) -> Patch {
    let mut operations = Vec::new();
    if from != to {
        compare(&PointerBuf::new(), from, to, &mut operations);
    }
    Patch(operations)
}

/// Of two that differ.
fn compare(path: &PointerBuf, from: &Value, to: &Value, operations: &mut Vec<PatchOperation>) {
    match (from, to) {
        (Value::Object(before), Value::Object(after)) => {
            for key in before.keys().filter(|key| !after.contains_key(*key)) {
                operations.push(remove(below(path, key)));
            }
            for (key, value) in after {
                match before.get(key) {
                    Some(old) if old == value => {}
                    Some(old) => compare(&below(path, key), old, value, operations),
                    None => operations.push(add(below(path, key), value)),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) => list(path, before, after, operations),
        _ => operations.push(replace(path, to)),
    }
}

/// A list whose elements all have names is changed element by element, others as a whole. The work grows as the
/// lists do: pods are other people's, and have as many elements as fit into a review.
fn list(
    path: &PointerBuf,
    before: &[Value],
    after: &[Value],
    operations: &mut Vec<PatchOperation>,
) {
    let (Some(old), Some(new)) = (names(before), names(after)) else {
        return operations.push(replace(path, &after.into()));
    };
    match (places(&old), places(&new)) {
        (Some(were), Some(are)) if same_order(&new, &were) => {
            let gone = (0..before.len()).rev().filter(|at| !are.contains_key(&*old[*at]));
            operations.extend(gone.map(|at| remove(below(path, &at.to_string()))));
            // Walks along what the patch has made so far.
            for (at, element) in after.iter().enumerate() {
                let was = were.get(&*new[at]).map(|was| &before[*was]);
                if was == Some(element) {
                    continue;
                }
                let here = below(path, &at.to_string());
                match was {
                    Some(was) => compare(&here, was, element, operations),
                    None => operations.push(add(here, element)),
                }
            }
        }
        // One port may have two names.
        _ if old == new => {
            let pairs = before.iter().zip(after).enumerate();
            for (at, (old, new)) in pairs.filter(|(_, (old, new))| old != new) {
                compare(&below(path, &at.to_string()), old, new, operations);
            }
        }
        _ => operations.push(replace(path, &after.into())),
    }
}

/// None if an element has no name.
fn names(list: &[Value]) -> Option<Vec<Cow<'_, str>>> {
    list.iter().map(name).collect()
}

/// Where each is, unless two are the same.
fn places<'a>(names: &'a [Cow<'_, str>]) -> Option<HashMap<&'a str, usize>> {
    let places: HashMap<_, _> = names.iter().enumerate().map(|(at, name)| (&**name, at)).collect();
    (places.len() == names.len()).then_some(places)
}

/// Whether those that were there before are in the order in which they were.
fn same_order(names: &[Cow<'_, str>], were: &HashMap<&str, usize>) -> bool {
    names.iter().filter_map(|name| were.get(&**name)).is_sorted()
}

/// Containers, volumes and variables have names; ports have numbers, and mounts have paths.
fn name(element: &Value) -> Option<Cow<'_, str>> {
    let text = |key: &str| element.get(key).and_then(Value::as_str);
    let port = || {
        let port = element.get("containerPort")?.as_u64()?;
        Some(Cow::Owned(format!("{port}/{}", text("protocol").unwrap_or("TCP"))))
    };
    let mount = || {
        let sub = text("subPath").unwrap_or_default();
        Some(Cow::Owned(format!("{}:{sub}", text("mountPath")?)))
    };
    port().or_else(mount).or_else(|| text("name").map(Cow::Borrowed))
}

fn below(path: &PointerBuf, token: &str) -> PointerBuf {
    path.with_trailing_token(token)
}

fn add(path: PointerBuf, value: &Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path, value: value.clone() })
}

fn replace(path: &PointerBuf, value: &Value) -> PatchOperation {
    PatchOperation::Replace(ReplaceOperation { path: path.clone(), value: value.clone() })
}

fn remove(path: PointerBuf) -> PatchOperation {
    PatchOperation::Remove(RemoveOperation { path })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn patched(from: &Value, to: &Value) -> Value {
        let mut value = from.clone();
        json_patch::patch(&mut value, &diff(from, to)).expect("a patch that applies");
        value
    }

    #[test]
    fn what_is_added_is_added_and_no_list_is_replaced() {
        let from =
            json!({"spec": {"containers": [{"name": "app", "ports": [{"containerPort": 80}]}]}});
        let to = json!({"metadata": {"annotations": {"a/b~c": "1"}}, "spec": {
            "containers": [{"name": "first"}, {"name": "app", "ports": [{"containerPort": 80, "name": "x"}]}, {"name": "last"}],
            "volumes": [{"name": "v"}],
        }});
        let patch = diff(&from, &to);
        assert!(patch.0.iter().all(|step| matches!(step, PatchOperation::Add(_))), "{patch}");
        assert_eq!(patched(&from, &to), to);
        assert_eq!(patched(&to, &from), from);
        assert!(diff(&to, &to).0.is_empty());
        let twice = json!({"ports": [{"containerPort": 80, "name": "a"}, {"containerPort": 80, "name": "b"}]});
        let renamed = json!({"ports": [{"containerPort": 80, "name": "a"}, {"containerPort": 80, "name": "c"}]});
        assert_eq!(
            diff(&twice, &renamed).to_string(),
            r#"[{"op":"replace","path":"/ports/1/name","value":"c"}]"#
        );
    }

    fn tree() -> impl Strategy<Value = Value> {
        let names = || prop::collection::btree_set("[a-d]", 0..4);
        let leaf = prop_oneof![Just(Value::Null), any::<u8>().prop_map(Value::from)];
        leaf.prop_recursive(3, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::btree_map("[a-c/~]", inner.clone(), 0..3)
                    .prop_map(|map| json!(map)),
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                (names(), inner).prop_map(|(names, inner)| {
                    names.into_iter().map(|name| json!({"name": name, "x": inner})).collect()
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn applied_to_the_one_it_gives_the_other(from in tree(), to in tree()) {
            prop_assert_eq!(patched(&from, &to), to);
        }
    }
}
