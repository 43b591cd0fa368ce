//! A browser or webview, by WebDriver: HTTP and JSON to a driver of our own.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::RgbImage;
use serde_json::{Value, json};

use crate::Lathe;

/// Of the window's light theme: what a primary button is filled with.
const ACCENT: [u8; 3] = [0x0A, 0x72, 0x67];
/// A button is that much in one line, somewhere between its text and its edge.
const BUTTON_WIDTH: u32 = 60;
/// A field to write in is at least that wide.
const FIELD_WIDTH: usize = 300;
/// The navigation has a primary button of its own.
const NAVIGATION_WIDTH: u32 = 230;

pub struct Driver {
    child: Child,
    port: u16,
}

impl Driver {
    /// None where there is no chromedriver.
    pub fn start() -> Option<Self> {
        let mut command = Command::new("chromedriver");
        let mut child = command
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.map_while(Result::ok).find_map(|line| {
            line.split_once("started successfully on port ")?.1.trim_end_matches('.').parse().ok()
        });
        Some(Self { child, port: port.expect("chromedriver names its port") })
    }

    /// Of webviews, in these surroundings. None where there is none: WebKit's is started by Tauri's, which
    /// `LATHE_TAURI_DRIVER` names.
    pub fn start_for_webviews(display: &str, lathe: &Lathe) -> Option<Self> {
        let driver = std::env::var_os("LATHE_TAURI_DRIVER")?;
        let free_port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (port, native) = (free_port(), free_port());
        let like = lathe.command(&[]);
        let mut command = Command::new(driver);
        command.args(["--port", &port.to_string(), "--native-port", &native.to_string()]);
        for (name, value) in like.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("DISPLAY", display).env_remove("WAYLAND_DISPLAY");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let driver = Self { child, port };
        for port in [port, native] {
            while TcpStream::connect(("127.0.0.1", port)).is_err() {
                thread::sleep(Duration::from_millis(50));
            }
        }
        Some(driver)
    }

    /// A program's window.
    pub fn webview(&self, program: &Path, args: &[&str]) -> Browser {
        let options = json!({"tauri:options": {"application": program, "args": args}});
        let body = json!({"capabilities": {"alwaysMatch": options}});
        let session = request(self.port, "POST", "/session", &body).unwrap();
        Browser { port: self.port, session: format!("/session/{}", session["sessionId"].as_str().unwrap()) }
    }

    pub fn browser(&self) -> Browser {
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader",
            "--force-device-scale-factor=1",
            "--window-size=1280,900",
            "--ignore-certificate-errors",
        ];
        let options = json!({"browserName": "chrome", "goog:chromeOptions": {"args": args}});
        let body = json!({"capabilities": {"alwaysMatch": options}});
        let session = request(self.port, "POST", "/session", &body).unwrap();
        Browser { port: self.port, session: format!("/session/{}", session["sessionId"].as_str().unwrap()) }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A browser with one page. Dropping it closes it.
pub struct Browser {
    port: u16,
    session: String,
}

impl Browser {
    pub fn open(&self, url: &str) {
        self.post("url", &json!({"url": url}));
    }

    /// Empty while a page is being loaded: WebKit's driver knows none then.
    pub fn title(&self) -> String {
        let title = request(self.port, "GET", &format!("{}/title", self.session), &Value::Null);
        title.ok().and_then(|title| title.as_str().map(String::from)).unwrap_or_default()
    }

    pub fn run(&self, script: &str) -> Value {
        self.post("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until the title is as wanted, and gives it.
    pub fn wait_for_title(&self, wanted: impl Fn(&str) -> bool) -> String {
        let due = Instant::now() + Duration::from_mins(2);
        loop {
            let title = self.title();
            if wanted(&title) {
                return title;
            }
            if Instant::now() > due {
                self.screenshot("failed");
                panic!(
                    "waited in vain, the title is {title:?}: {:?}",
                    self.run("return document.body.innerText")
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until something is so.
    pub fn wait_for(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let due = Instant::now() + Duration::from_mins(2);
        while !is_so() {
            if Instant::now() > due {
                self.screenshot("failed");
                panic!("waited in vain for {what}, the title is {:?}", self.title());
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// What the page looks like; kept as a file too if `LATHE_SCREENSHOTS` names a folder.
    pub fn screenshot(&self, name: &str) -> RgbImage {
        let png = STANDARD.decode(self.get("screenshot").as_str().unwrap()).unwrap();
        if let Some(folder) = std::env::var_os("LATHE_SCREENSHOTS") {
            std::fs::write(Path::new(&folder).join(format!("{name}.png")), &png).unwrap();
        }
        image::load_from_memory(&png).unwrap().to_rgb8()
    }

    /// Waits until the place has a primary button, and clicks it.
    pub fn click_primary_button(&self) {
        let due = Instant::now() + Duration::from_secs(30);
        let (x, y) = loop {
            match primary_button(&self.screenshot("before-click")) {
                Some(place) => break place,
                None => assert!(Instant::now() < due, "there is no primary button"),
            }
        };
        self.click(x, y);
    }

    /// Whether a primary button, which can be clicked, is there.
    pub fn is_primary(&self, x: u32, y: u32) -> bool {
        is_accent(&self.screenshot("before-click"), x, y)
    }

    pub fn click(&self, x: u32, y: u32) {
        let to = |kind: &str| json!({"type": kind, "button": 0, "x": x, "y": y, "duration": 50});
        let pause = json!({"type": "pause", "duration": 200});
        let acts =
            [to("pointerMove"), pause.clone(), to("pointerDown"), pause.clone(), to("pointerUp"), pause];
        let mouse = json!({"type": "pointer", "id": "mouse", "actions": acts});
        self.post("actions", &json!({"actions": [mouse]}));
    }

    /// Waits until a field in the lower half has the focus: what is typed before that is lost.
    pub fn wait_for_field(&self) {
        self.wait_for("a field with the focus", || has_focused_field(&self.screenshot("field")));
    }

    /// Into whatever has the focus; `\u{E007}` is Enter.
    pub fn type_text(&self, text: &str) {
        let press = |letter: char| {
            let act = |kind: &str| json!({"type": kind, "value": letter.to_string()});
            [act("keyDown"), act("keyUp"), json!({"type": "pause", "duration": 30})]
        };
        let acts: Vec<Value> = text.chars().flat_map(press).collect();
        self.post("actions", &json!({"actions": [{"type": "key", "id": "keys", "actions": acts}]}));
    }

    fn get(&self, what: &str) -> Value {
        request(self.port, "GET", &format!("{}/{what}", self.session), &Value::Null).unwrap()
    }

    fn post(&self, what: &str, body: &Value) -> Value {
        request(self.port, "POST", &format!("{}/{what}", self.session), body).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !thread::panicking() {
            request(self.port, "DELETE", &self.session, &Value::Null).unwrap();
        }
    }
}

/// The middle of the largest filled patch of the accent's colour.
fn primary_button(image: &RgbImage) -> Option<(u32, u32)> {
    let mut rows = Vec::new();
    for y in 0..image.height() {
        let mut run = 0;
        for x in 0..image.width() {
            run = if x > NAVIGATION_WIDTH && is_accent(image, x, y) { run + 1 } else { 0 };
            if run == BUTTON_WIDTH {
                rows.push((x - BUTTON_WIDTH / 2, y));
                break;
            }
        }
    }
    let (x, y) = *rows.first()?;
    // Its upper edge: the button is 32 high.
    Some((x, y + 12))
}

/// A focused field is framed in the accent's colour.
fn has_focused_field(image: &RgbImage) -> bool {
    (image.height() / 2..image.height()).any(|y| {
        let row = (NAVIGATION_WIDTH..image.width()).map(|x| is_accent(image, x, y)).collect::<Vec<_>>();
        row.split(|is_accent| !is_accent).any(|line| line.len() > FIELD_WIDTH)
    })
}

fn is_accent(image: &RgbImage, x: u32, y: u32) -> bool {
    image.get_pixel(x, y).0.iter().zip(ACCENT).all(|(&is, of)| is.abs_diff(of) < 4)
}

/// What the driver answers, or what it says against it.
fn request(port: u16, method: &str, path: &str, body: &Value) -> Result<Value, String> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    // Tauri's driver hangs up on a request whose line to WebKit's was just closed, before anything was sent there.
    let answer = (0..5).find_map(|_| exchange(port, method, path, &body));
    let answer = answer.unwrap_or_else(|| panic!("the driver hung up: {method} {path}"));
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let value = answer["value"].clone();
    if value["error"].is_null() { Ok(value) } else { Err(format!("{method} {path}: {value}")) }
}

/// The answer's body; None if there is none.
fn exchange(port: u16, method: &str, path: &str, body: &str) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(2))).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 {
            return None;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut answer = vec![0; length];
    reader.read_exact(&mut answer).unwrap();
    Some(answer)
}
