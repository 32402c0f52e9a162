//! Chromium without a screen, driven through its DevTools protocol over a pipe.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{as_server_user, eventually_now, fresh_dir};

/// Its two pipes are file descriptors 3 and 4, which a shell can arrange.
const START: &str = r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>"$HOME/log""#;

/// A browser of its own, with a temporary profile. Dropping it ends it.
pub struct Chromium {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    dir: PathBuf,
    next: u64,
}

/// One page in it.
pub struct Page {
    browser: std::cell::RefCell<Chromium>,
    session: String,
    /// Exceptions and refusals that the page's console heard.
    complaints: std::cell::RefCell<Vec<String>>,
    width: Cell<u32>,
}

impl Chromium {
    /// Starts it as the user that servers run as: it is no friend of root.
    pub fn start() -> Self {
        let dir = fresh_dir("chromium");
        let mut command = Command::new("sh");
        command
            .args(["-c", START, "sh", &program()])
            .args([
                "--headless=new",
                "--remote-debugging-pipe",
                "--no-first-run",
            ])
            // A container has no namespaces to spare for one; it sees nothing but the daemon.
            .args(["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .args([
                "--disable-sync",
                "--disable-extensions",
                "--no-proxy-server",
            ])
            .args([
                "--force-device-scale-factor=1",
                "--hide-scrollbars",
                "--lang=en-GB",
            ])
            .arg(format!("--user-data-dir={}", dir.join("profile").display()))
            .env("HOME", &dir)
            .env("TZ", "UTC")
            .env("XDG_CONFIG_HOME", dir.join("config"))
            .env("XDG_CACHE_HOME", dir.join("cache"))
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = as_server_user(&mut command).spawn().unwrap();
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            to,
            from,
            dir,
            next: 0,
        }
    }

    /// An empty page.
    pub fn page(mut self) -> Page {
        let mut ignore = |_: &Value| {};
        let target = self.call(
            None,
            "Target.createTarget",
            json!({"url": "about:blank"}),
            &mut ignore,
        );
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.call(None, "Target.attachToTarget", attach, &mut ignore);
        let session = attached["sessionId"].as_str().unwrap().to_owned();
        let page = Page {
            browser: self.into(),
            session,
            complaints: Vec::new().into(),
            width: Cell::new(0),
        };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), json!({}));
        }
        page
    }

    fn call(
        &mut self,
        session: Option<&str>,
        method: &str,
        params: Value,
        heard: &mut dyn FnMut(&Value),
    ) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let sent = self.to.write_all(format!("{message}\0").as_bytes());
        sent.unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        loop {
            let mut text = Vec::new();
            self.from.read_until(0, &mut text).unwrap();
            if text.pop() != Some(0) {
                panic!("Chromium has ended: {}", self.log());
            }
            let message: Value = serde_json::from_slice(&text).unwrap();
            if message["id"] == self.next {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            heard(&message);
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Page {
    /// Goes to an address.
    pub fn open(&self, url: &str) {
        let opened = self.call("Page.navigate", json!({"url": url}));
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
    }

    /// What an expression is, which may be a promise.
    pub fn value(&self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", params);
        let thrown = &answer["exceptionDetails"];
        assert!(thrown.is_null(), "{expression}: {thrown}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub fn until(&self, expression: &str) {
        eventually_now(expression, || {
            (self.value(expression) == true).then_some(())
        });
    }

    /// The size of the window, in pixels.
    pub fn size(&self, width: u32, height: u32) {
        self.width.set(width);
        let params = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", params);
    }

    /// `light` or `dark`, as the system would have it.
    pub fn colours(&self, scheme: &str) {
        let params = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", params);
    }

    /// Presses a key: `/`, `Enter`, `Escape`, `ArrowDown`, `Tab` …
    pub fn press(&self, key: &str) {
        self.press_with(key, 0);
    }

    /// The same with Shift.
    pub fn press_shift(&self, key: &str) {
        self.press_with(key, 8);
    }

    fn press_with(&self, key: &str, modifiers: u32) {
        let mut params =
            json!({"type": "keyDown", "key": key, "code": key, "modifiers": modifiers});
        // What the browser does by itself goes by this.
        if key == "Tab" {
            params["windowsVirtualKeyCode"] = 9.into();
        }
        if key.chars().count() == 1 {
            params["text"] = key.into();
        }
        if key == "Enter" {
            params["text"] = "\r".into();
        }
        self.call("Input.dispatchKeyEvent", params.clone());
        params["type"] = "keyUp".into();
        self.call("Input.dispatchKeyEvent", params);
    }

    /// Types a text where the cursor is.
    pub fn type_in(&self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Clicks in the middle of what a selector finds.
    pub fn click(&self, selector: &str) {
        let at = self.value(&format!(
            "(() => {{ const box = document.querySelector({}).getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2]; }})()",
            Value::from(selector)
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let params =
                json!({"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", params);
        }
    }

    /// What is seen, as a PNG.
    pub fn picture(&self, file: &Path) {
        let answer = self.call("Page.captureScreenshot", json!({"format": "png"}));
        std::fs::write(file, decoded(answer["data"].as_str().unwrap())).unwrap();
    }

    /// What the console heard: exceptions, refused resources.
    pub fn complaints(&self) -> Vec<String> {
        self.value("0");
        self.complaints.borrow().clone()
    }

    fn call(&self, method: &str, params: Value) -> Value {
        let mut heard = |message: &Value| {
            let what = &message["params"];
            let text = match message["method"].as_str().unwrap_or_default() {
                "Runtime.exceptionThrown" => what["exceptionDetails"].to_string(),
                "Log.entryAdded" if what["entry"]["level"] == "error" => what["entry"].to_string(),
                _ => return,
            };
            self.complaints.borrow_mut().push(text);
        };
        let mut browser = self.browser.borrow_mut();
        browser.call(Some(&self.session), method, params, &mut heard)
    }
}

fn program() -> String {
    std::env::var("SPCD_CHROMIUM").unwrap_or_else(|_| "chromium".to_owned())
}

/// Base64.
fn decoded(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bytes: Vec<u8> = text
        .bytes()
        .filter(|byte| *byte != b'=')
        .map(value)
        .collect();
    let mut out = Vec::with_capacity(bytes.len() * 3 / 4);
    for four in bytes.chunks(4) {
        let bits = four
            .iter()
            .fold(0u32, |bits, byte| bits << 6 | u32::from(*byte));
        let bits = bits << (6 * (4 - four.len()));
        out.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    out
}
