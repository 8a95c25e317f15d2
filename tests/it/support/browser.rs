//! A browser: headless Chromium, told what to do over a pipe, by its DevTools protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{SOON, process};

/// A browser with one page. Dropping it ends it.
pub(crate) struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: Option<String>,
    calls: u64,
    /// What the browser told of by itself.
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

/// Everything a page may not do, noticed before its first line runs.
const WITNESS: &str = "window.violations = []; addEventListener('securitypolicyviolation', \
     (e) => window.violations.push(e.violatedDirective + ' ' + e.blockedURI));";

impl Browser {
    /// `None`: there is no Chromium.
    pub(crate) fn start() -> Option<Self> {
        if !process::installed("chromium") {
            return None;
        }
        let profile = tempfile::tempdir().expect("a temporary directory");
        // It reads commands from descriptor 3 and answers on 4. Root gets no sandbox; it sees nothing
        // but our own page.
        let script = "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage \
             --hide-scrollbars --no-first-run --disable-background-networking \
             --disable-component-update --remote-debugging-pipe \"--user-data-dir=$0\" \
             3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .arg(profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        let to = child.stdin.take().expect("piped");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let (told, from) = channel();
        std::thread::spawn(move || {
            for message in out.split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("the browser speaks JSON");
                if told.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            child,
            to,
            from,
            session: None,
            calls: 0,
            events: Vec::new(),
            _profile: profile,
        };
        let page = browser.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", &attach);
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser.call("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": WITNESS }));
        Some(browser)
    }

    /// One command, and its result.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        write!(self.to, "{message}\0").expect("the browser lives");
        let end = Instant::now() + 3 * SOON;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let told = self.from.recv_timeout(left);
            let told = told.unwrap_or_else(|_| panic!("the browser does not answer {method}"));
            if told["id"] == self.calls {
                assert!(told["error"].is_null(), "{method}: {}", told["error"]);
                return told["result"].clone();
            }
            self.events.push(told);
        }
    }

    /// Shows a page and waits until it is there.
    #[track_caller]
    pub(crate) fn open(&mut self, url: &str) {
        self.call("Page.navigate", &json!({ "url": url }));
        let end = Instant::now() + SOON;
        while self.evaluate("document.readyState + location.href")
            != json!(format!("complete{url}"))
        {
            assert!(Instant::now() < end, "{url} is not shown");
            std::thread::sleep(Duration::from_millis(10)); // between two looks
        }
    }

    /// The value of a JavaScript expression, or of what it promises.
    #[track_caller]
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", &params);
        let problem = &answer["exceptionDetails"];
        assert!(problem.is_null(), "{expression}: {problem}");
        answer["result"]["value"].clone()
    }

    /// The text of what `selector` finds first.
    #[track_caller]
    pub(crate) fn text(&mut self, selector: &str) -> Option<String> {
        let text = format!("document.querySelector({})?.textContent", json!(selector));
        self.evaluate(&text).as_str().map(|text| text.replace('\u{a0}', ""))
    }

    /// How large the window is, in pixels.
    pub(crate) fn resize(&mut self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", &size);
    }

    /// `dark` or `light`.
    pub(crate) fn prefer(&mut self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.call("Emulation.setEmulatedMedia", &json!({ "features": [feature] }));
    }

    /// Whether pages may run scripts.
    pub(crate) fn scripts(&mut self, allowed: bool) {
        self.call("Emulation.setScriptExecutionDisabled", &json!({ "value": !allowed }));
    }

    /// The whole page as PNG into the directory of `TIDEGATE_SCREENSHOTS`, if that is set.
    pub(crate) fn picture(&mut self, name: &str) {
        let Some(directory) = std::env::var_os("TIDEGATE_SCREENSHOTS") else {
            return;
        };
        let shot = self.call("Page.captureScreenshot", &json!({ "captureBeyondViewport": true }));
        let png = base64(shot["data"].as_str().expect("a picture"));
        let file = std::path::Path::new(&directory).join(format!("{name}.png"));
        std::fs::write(file, png).expect("TIDEGATE_SCREENSHOTS is a directory");
    }

    /// Every address that was asked for something so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        let of = |event: &Value| {
            let url = event["params"]["request"]["url"].as_str()?;
            (event["method"] == "Network.requestWillBeSent").then(|| url.to_owned())
        };
        self.events.iter().filter_map(of).collect()
    }

    /// Every complaint so far: of the console, of scripts, of the content policy.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        let violations = self.evaluate("window.violations");
        let of_policy = violations.as_array().into_iter().flatten().map(Value::to_string);
        let told = self.events.iter().filter(|event| match event["method"].as_str() {
            Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled") => true,
            Some("Log.entryAdded") => event["params"]["entry"]["level"] != "verbose",
            _ => false,
        });
        told.map(Value::to_string).chain(of_policy).collect()
    }

    /// Forget what it told of so far.
    pub(crate) fn forget(&mut self) {
        self.events.clear();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its children end when it does.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// RFC 4648, of what a browser has encoded.
fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes().filter_map(|c| DIGITS.iter().position(|digit| *digit == c)) {
        bits = (bits << 6 | digit as u32) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}
