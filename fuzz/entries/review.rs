//! The fuzzer's entry to the webhook, which `make test` runs, too (tests/webhook.rs): whatever an API server, or
//! somebody who plays one, sends. What is a review is answered, never by refusing the pod, with warnings that can
//! be shown.

use serde_json::Value;
use tidegate::inject::{Context, Operator};

/// Whether it was a review.
pub fn review(bytes: &[u8]) -> bool {
    let reviewed =
        tidegate::webhook::review::review(bytes, Context::default(), &Operator::default());
    let Ok(reviewed) = reviewed else { return false };
    let answer: Value = serde_json::from_slice(&reviewed.answer).expect("JSON");
    let response = &answer["response"];
    assert_eq!(response["allowed"], true);
    for warning in response["warnings"].as_array().into_iter().flatten() {
        let warning = warning.as_str().expect("text");
        assert!(
            warning.chars().count() <= 256 && !warning.contains(char::is_control),
            "{warning:?}"
        );
    }
    true
}
