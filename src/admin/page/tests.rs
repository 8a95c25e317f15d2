//! Whatever the status says, the page stays the page.

use std::net::SocketAddr;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A page in which every text from outside is `text`.
fn page(text: &str) -> String {
    let port = |mode: &str| {
        json!({
            "listen": text, "app": text, "protocol": text, "mode": mode, "limit": 8, "active": 8,
            "queued": 3, "queue_length": 16, "peak_active": 8, "bypass": 3, "accepted": 40, "admitted": 20,
            "outcomes": { text: 4 }, "refused": { text: 7, "queue_full": 2 }, "would_refuse": 1,
            "shadow": { "25": 4 }, "bytes_in": 1, "bytes_out": 2,
            "recent": { "refused_per_second": { text: 3.5, "queue_full": 1.0 } },
            "history": { "active": [1, text, 3] },
        })
    };
    let status = json!({
        "version": text, "engine": { "name": text, "reason": text }, "phase": text,
        "ports": [port("enforce"), port("observe"), port(text)],
        "last_reload": { "ok": false, "error": text }, "probe": text, "metrics": text,
        "draining": { "cause": text, "closes_in_seconds": 3 },
        "drain_partial": true, "drains_taken_back": 2,
    });
    let setting = |key, port| Setting { key, port, value: text.into(), origin: text.into() };
    let connection = Connection {
        id: 1,
        port: text.into(),
        client: text.into(),
        stage: "relaying",
        seconds: 1.0,
        bytes_in: 0,
        bytes_out: 0,
    };
    let content = Content {
        status: &status,
        settings: &[setting("limit", Some(8080)), setting("admin", None)],
        connections: Some(&[connection]),
        now: UNIX_EPOCH,
    };
    html(&content, &Frame { nonce: "n", purpose: Purpose::Whole })
}

/// The markup without the text: every `<…>` with the values of its attributes left out. Strict: a
/// quote outside an attribute's value, or an angle bracket inside, would show.
fn skeleton(page: &str) -> String {
    // The style and the script are the program's own, and the same on every page.
    let page = page.replace(STYLE, "").replace(SCRIPT, "");
    let (mut bones, mut tag, mut value) = (String::new(), false, false);
    for c in page.chars() {
        match (c, tag, value) {
            ('<', false, _) => tag = true,
            ('>', true, false) => tag = false,
            ('"', true, _) => value = !value,
            ('<' | '>' | '"' | '\'', ..) => bones.push('!'),
            (_, true, false) => {}
            _ => continue,
        }
        bones.push(c);
    }
    bones
}

fn hostile() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "<",
        ">",
        "\"",
        "'",
        "&",
        "</",
        "<!--",
        "-->",
        "]]>",
        "<script>",
        "</script>",
        "</title>",
        "</style>",
        "<svg onload=alert(1)>",
        "\" onmouseover=\"alert(1)",
        "javascript:",
        "&lt;",
        "&#60;",
        "\u{0}",
        "\n",
        "\u{202e}",
        "\u{2028}",
        "`",
        "=",
        " ",
        "<plaintext>",
        "</noscript>",
    ]);
    let piece = prop_oneof![pieces.prop_map(str::to_owned), any::<String>()];
    prop::collection::vec(piece, 0..6).prop_map(|all| all.concat())
}

proptest! {
    #[test]
    fn nothing_breaks_out_of_the_page(text in hostile()) {
        // Names that the page looks for make it show other things, none of which is from outside.
        prop_assume!(!["", "enforce", "off", "observe", "tcp", "auto", "starting"].contains(&text.as_str()));
        let page = page(&text);
        prop_assert_eq!(skeleton(&page), skeleton(&self::page("x")));
        prop_assert!(page.chars().all(|c| story::is_visible(c) || STYLE.contains(c) || SCRIPT.contains(c)));
    }
}

#[test]
fn the_page_needs_nothing_else() {
    let page = page("x");
    for outside in ["http:", "https:", "//", "src=", "@import", "url("] {
        let page = page.replace("http://www.w3.org/2000/svg", "").replace("// ", "");
        assert!(!page.contains(outside), "{outside} in {page}");
    }
    // No inline style and no inline handler: the policy would not let them.
    let bones = skeleton(&page);
    assert!(!bones.contains(" style=") && !bones.contains(" on"), "{bones}");
}

#[test]
fn a_status_without_anything_is_shown() {
    let content = Content { status: &json!({}), settings: &[], connections: None, now: UNIX_EPOCH };
    let page = html(&content, &Frame { nonce: "n", purpose: Purpose::of(Some("reload=5")) });
    assert!(page.contains("No port is configured"), "{page}");
    assert!(page.contains("<noscript><meta http-equiv=\"refresh\" content=\"5\">"), "{page}");
    assert!(page.contains("00:00:00 UTC"), "{page}");
}

#[test]
fn what_passes_beside_the_gateway_is_said_where_it_can_be_seen() {
    let page = |bypass| {
        let port = json!({
            "listen": "0.0.0.0:8080", "mode": "enforce", "limit": 8, "active": 1, "bypass": bypass,
        });
        let content = Content {
            status: &json!({ "ports": [port] }),
            settings: &[],
            connections: None,
            now: UNIX_EPOCH,
        };
        html(&content, &Frame { nonce: "n", purpose: Purpose::Whole })
    };
    let three = page(json!(3));
    assert!(three.contains("beside the gateway <span data-is=\"bypass\">3</span>"), "{three}");
    assert!(three.contains("passed by"), "{three}");
    assert!(three.contains("; 3 connections reach the application beside the gateway"), "{three}");
    assert!(page(json!(1)).contains("; 1 connection reaches the application"));
    let none = page(json!(0));
    assert!(none.contains("data-is=\"bypass\">0<") && !none.contains("passed by"), "{none}");
    assert!(!page(Value::Null).contains("beside the gateway"));
}

#[test]
fn only_what_makes_sense_is_a_purpose() {
    for odd in [None, Some(""), Some("reload=0"), Some("reload=x"), Some("reload=999"), Some("x")] {
        assert_eq!(Purpose::of(odd), Purpose::Whole, "{odd:?}");
    }
    let content = Content { status: &json!({}), settings: &[], connections: None, now: UNIX_EPOCH };
    let update = html(&content, &Frame { nonce: "n", purpose: Purpose::of(Some("update")) });
    assert!(!update.contains("<style") && !update.contains("<script"), "{update}");
}

#[test]
fn every_nonce_is_another() {
    let [one, other] = [nonce(), nonce()];
    assert_eq!(one.len(), 32);
    assert_ne!(one, other);
    assert!(policy(&one).parse::<hyper::header::HeaderValue>().is_ok());
}

#[test]
fn the_settings_of_a_port_are_those_of_its_number() {
    let listen = SocketAddr::from(([127, 0, 0, 1], 8080));
    let setting = |port, value: &str, origin: &str| Setting {
        key: "limit",
        port: Some(port),
        value: value.into(),
        origin: origin.into(),
    };
    let settings = [setting(8080, "eight", "flag --limit"), setting(8081, "nine", "default")];
    let status = json!({ "ports": [{ "listen": listen }] });
    let content =
        Content { status: &status, settings: &settings, connections: Some(&[]), now: UNIX_EPOCH };
    let page = html(&content, &Frame { nonce: "n", purpose: Purpose::Whole });
    assert!(page.contains("<td data-setting=\"limit\">eight</td><td>flag --limit</td>"), "{page}");
    assert!(!page.contains("nine"), "{page}");
}

#[test]
fn a_partial_drain_and_one_that_was_taken_back_are_told() {
    let page = page("x");
    for said in ["drain=partial: a container has a hook", "2 drains were taken back"] {
        assert!(page.contains(said), "{said} in {page}");
    }
}
