//! AdmissionReview in, AdmissionReview out. Of what comes only the fields that are needed are read, so that
//! versions and fields to come are no matter; of the two versions there have been, the answer has the one that was
//! asked in.
//!
//! Always true: no bytes make it panic; a pod is never refused, it is at most left as it is; nothing of
//! the pod is in what is said of bytes that cannot be read; a warning is one line that API servers pass on.

use std::borrow::Cow;

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::inject::{self, Context, INJECTED_VERSION, Operator, Outcome};

/// What became of a review.
#[derive(Clone, Debug, PartialEq)]
pub struct Reviewed {
    /// The answer, as JSON.
    pub answer: Vec<u8>,
    /// What it says.
    pub decision: Decision,
    /// Why, for the log.
    pub why: String,
    /// The namespace of what was reviewed.
    pub namespace: String,
    /// Its name, or what its name will begin with.
    pub name: String,
    /// It came with a sidecar of another version than ours.
    pub outdated: bool,
}

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To change the pod.
    Patched,
    /// To leave it, because it needs nothing.
    Unchanged,
    /// To leave it, although it asked.
    Refused,
}

/// Bytes that are no review. What is said names the place, never what is written there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or not of the shape.
    #[error("the body is no AdmissionReview: {what} at line {line}, column {column}")]
    Json {
        /// What is wrong.
        what: &'static str,
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// Of another kind.
    #[error(
        "the body is of another kind: AdmissionReview of admission.k8s.io/v1 is understood here"
    )]
    Kind,
    /// It asks nothing.
    #[error("the AdmissionReview has no request with a uid")]
    NoRequest,
}

/// More than this the API server cuts off (in characters).
const MAX_WARNING: usize = 256;

/// 4096 characters in all are passed on.
const MAX_WARNINGS: usize = 4096 / MAX_WARNING;

const VERSIONS: [&str; 2] = ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    #[serde(borrow)]
    api_version: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    request: Option<Request>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Request {
    uid: String,
    resource: Resource,
    sub_resource: Option<String>,
    operation: String,
    namespace: Option<String>,
    name: Option<String>,
    object: Value,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            uid: String::new(),
            resource: Resource::default(),
            sub_resource: None,
            operation: String::new(),
            namespace: None,
            name: None,
            object: Value::Null,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Resource {
    group: String,
    resource: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'a str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<ByteString>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    audit_annotations: Audit<'a>,
}

/// What the audit log of the API server has, under the webhook's name.
#[derive(Serialize)]
struct Audit<'a> {
    injection: Cow<'a, str>,
}

/// Judge a review. `context`: what is known of the place beside the namespace, which the review names.
pub fn review(body: &[u8], context: Context, operator: &Operator) -> Result<Reviewed, Malformed> {
    let review: Review<'_> = serde_json::from_slice(body).map_err(|error| Malformed::of(&error))?;
    let version = VERSIONS.into_iter().find(|version| *version == review.api_version);
    let version = version.filter(|_| review.kind == "AdmissionReview").ok_or(Malformed::Kind)?;
    let request = review.request.filter(|request| !request.uid.is_empty());
    let request = request.ok_or(Malformed::NoRequest)?;
    let outcome = judge(&request, context, operator);

    let mut patch = None;
    let (decision, why, warnings) = match outcome {
        Outcome::Patched { patch: changes, warnings } => {
            let changes = serde_json::to_vec(&changes).map_err(|error| Malformed::of(&error))?;
            patch = Some(ByteString(changes));
            (Decision::Patched, String::new(), warnings)
        }
        Outcome::Unchanged { why } => (Decision::Unchanged, why, Vec::new()),
        Outcome::Refused { why } => {
            let warning = format!("not injected: {why}");
            (Decision::Refused, why, vec![warning])
        }
    };
    let injection = match decision {
        Decision::Patched => Cow::Borrowed("patched"),
        Decision::Unchanged => Cow::Owned(format!("unchanged: {}", line(&why, MAX_WARNING))),
        Decision::Refused => Cow::Owned(format!("refused: {}", line(&why, MAX_WARNING))),
    };
    let answer = Answer {
        api_version: version,
        kind: "AdmissionReview",
        response: Response {
            uid: &request.uid,
            allowed: true,
            patch_type: patch.as_ref().map(|_| "JSONPatch"),
            patch,
            warnings: sayable(&warnings),
            audit_annotations: Audit { injection },
        },
    };
    let answer = serde_json::to_vec(&answer).map_err(|error| Malformed::of(&error))?;
    let text = |path: &str| request.object.pointer(path).and_then(Value::as_str);
    let name = request.name.as_deref().filter(|name| !name.is_empty());
    let name = name.or_else(|| text("/metadata/name")).or_else(|| text("/metadata/generateName"));
    // `/` is `~1` in a pointer.
    let version = text(&format!("/metadata/annotations/{}", INJECTED_VERSION.replace('/', "~1")));
    Ok(Reviewed {
        answer,
        decision,
        why,
        name: name.unwrap_or_default().to_owned(),
        outdated: version.is_some_and(|version| version != env!("CARGO_PKG_VERSION")),
        namespace: request.namespace.unwrap_or_default(),
    })
}

fn judge(request: &Request, context: Context, operator: &Operator) -> Outcome {
    let Request { resource, sub_resource, operation, object, .. } = request;
    let unchanged = |why: &str| Outcome::Unchanged { why: why.to_owned() };
    let is_pod = resource.group.is_empty() && resource.resource == "pods";
    if !is_pod || sub_resource.as_deref().is_some_and(|sub| !sub.is_empty()) {
        return unchanged("only pods are given a gateway");
    }
    if operation != "CREATE" {
        return unchanged("a pod that exists cannot be given a gateway");
    }
    if !object.is_object() {
        return unchanged("the review has no pod");
    }
    let namespace = request.namespace.clone().unwrap_or_default();
    inject::review(object, &Context { namespace, ..context }, operator)
}

impl Malformed {
    /// What serde says may quote what is written there.
    fn of(error: &serde_json::Error) -> Self {
        use serde_json::error::Category;
        let what = match error.classify() {
            Category::Eof => "it ends too early",
            Category::Syntax => "it is not JSON, or nested too deeply",
            Category::Data => "a field is missing, there twice, or of another type",
            Category::Io => "it cannot be read",
        };
        Self::Json { what, line: error.line(), column: error.column() }
    }
}

/// Warnings as API servers pass them on to people.
fn sayable(warnings: &[String]) -> Vec<String> {
    let said = |warning: &String| line(&format!("tidegate: {warning}"), MAX_WARNING);
    if warnings.len() <= MAX_WARNINGS {
        return warnings.iter().map(said).collect();
    }
    let shown = MAX_WARNINGS - 1;
    let more = format!("and {} more; tidegate lint lists them all", warnings.len() - shown);
    warnings[..shown].iter().chain([&more]).map(said).collect()
}

/// `text` in one line of at most `most` characters, without any that does something to a terminal.
fn line(text: &str, most: usize) -> String {
    let mut line = String::with_capacity(text.len().min(most * 4));
    let mut length = 0;
    for c in text.chars() {
        let plain = matches!(c, '\'' | '"' | '\\') || c.escape_debug().count() == 1;
        let shown = match c {
            '\n' | '\r' | '\t' => " ".to_owned(),
            _ if plain => c.to_string(),
            _ => c.escape_unicode().to_string(),
        };
        length += shown.chars().count();
        line.push_str(&shown);
        if length > most {
            let cut = line.char_indices().nth(most - 1).map_or(line.len(), |(at, _)| at);
            line.truncate(cut);
            line.push('…');
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn asked(change: impl FnOnce(&mut Value)) -> Value {
        let mut review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "705ab4f5", "operation": "CREATE", "namespace": "shop", "dryRun": false,
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "resource": { "group": "", "version": "v1", "resource": "pods" },
                "object": { "apiVersion": "v1", "kind": "Pod", "metadata": { "generateName": "web-" } },
            },
        });
        change(&mut review);
        review
    }

    fn reviewed(asked: &Value) -> Result<Reviewed, Malformed> {
        review(asked.to_string().as_bytes(), Context::default(), &Operator::default())
    }

    fn answered(asked: &Value) -> Value {
        serde_json::from_slice(&reviewed(asked).expect("a review").answer).expect("JSON")
    }

    #[test]
    fn the_answer_is_in_the_version_that_was_asked() {
        for version in VERSIONS {
            let answer = answered(&asked(|review| review["apiVersion"] = version.into()));
            assert_eq!(answer["apiVersion"], version);
            assert_eq!(answer["kind"], "AdmissionReview");
            assert_eq!(answer["response"]["uid"], "705ab4f5");
            assert_eq!(answer["response"]["allowed"], true);
        }
    }

    #[test]
    fn what_is_no_new_pod_is_left_alone() {
        for (path, value) in [
            ("/request/operation", json!("UPDATE")),
            ("/request/operation", json!("")),
            ("/request/resource", json!({ "group": "apps", "resource": "deployments" })),
            ("/request/resource/group", json!("example.com")),
            ("/request/object", json!(null)),
            ("/request/object", json!("a pod")),
            ("/request/object", json!([])),
        ] {
            let asked = asked(|review| *review.pointer_mut(path).expect("is there") = value);
            let answer = answered(&asked);
            assert_eq!(answer["response"]["allowed"], true, "{asked}");
            assert!(answer["response"].get("patch").is_none(), "{asked}");
        }
        let eviction = asked(|review| review["request"]["subResource"] = "eviction".into());
        assert!(reviewed(&eviction).expect("a review").why.contains("only pods"));
        let future = asked(|review| review["request"]["unheardOf"] = json!([{ "a": 1 }]));
        assert_eq!(reviewed(&future).expect("a review").name, "web-");
    }

    #[test]
    fn what_is_no_review_is_said_without_what_it_holds() {
        for (asked, says) in [
            (asked(|review| review["kind"] = "Pod".into()), "another kind"),
            (asked(|review| review["apiVersion"] = "admission.k8s.io/v2".into()), "another kind"),
            (asked(|review| review["request"] = json!(null)), "no request"),
            (asked(|review| review["request"]["uid"] = "".into()), "no request"),
            (asked(|review| review["request"]["uid"] = json!({ "s3cret": "s3cret" })), "line 1"),
            (json!("s3cret"), "line 1"),
        ] {
            let said = reviewed(&asked).expect_err("no review").to_string();
            assert!(said.contains(says), "{asked}: {said}");
            assert!(!said.contains("s3cret"), "{said}");
        }
        for broken in ["", "{", "s3cret", "\u{feff}{}", &"[".repeat(100_000)] {
            let said = review(broken.as_bytes(), Context::default(), &Operator::default());
            assert!(!said.expect_err("no review").to_string().contains("s3cret"));
        }
    }

    #[test]
    fn an_outdated_sidecar_is_noticed() {
        let with = |version: &str| {
            let annotations = json!({ INJECTED_VERSION: version });
            let asked = asked(|review| {
                review["request"]["object"]["metadata"]["annotations"] = annotations;
            });
            reviewed(&asked).expect("a review").outdated
        };
        assert!(with("0.0.1"));
        assert!(!with(env!("CARGO_PKG_VERSION")));
    }

    proptest! {
        #[test]
        fn warnings_are_lines_that_api_servers_pass_on(warnings: Vec<String>, long in 0..600_usize) {
            let mut warnings = warnings;
            warnings.push("ü\u{202e}\u{1b}[31m\n".repeat(long));
            let said = sayable(&warnings);
            prop_assert!(said.len() <= MAX_WARNINGS && !said.is_empty());
            for line in said {
                prop_assert!(line.chars().count() <= MAX_WARNING, "{line}");
                prop_assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{line:?}");
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = review(&bytes, Context::default(), &Operator::default());
        }
    }
}
