//! A client of the daemon's HTTP that hides nothing: what is sent is what the test wrote.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::{DEADLINE, Spcd, eventually_now};

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The head's lines after the first, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body.
    ///
    /// # Panics
    /// When it is no JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Where a daemon answers: the socket `http` in its directory.
pub struct Http(PathBuf);

impl Http {
    /// Has the daemon that is started next listen on a socket.
    pub fn of(spcd: &mut Spcd) -> Self {
        let path = spcd.dir().join("http");
        spcd.env("SPCD_HTTP", &format!("unix:{}", path.display()));
        Self(path)
    }

    /// On a socket elsewhere.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Waits until the address accepts connections.
    pub fn is_there(&self) -> &Self {
        eventually_now("HTTP answers", || UnixStream::connect(&self.0).ok());
        self
    }

    /// Whether no process listens.
    pub fn is_gone(&self) -> bool {
        UnixStream::connect(&self.0).is_err()
    }

    /// A connection, for what the other functions cannot do.
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.0).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Sends a GET without credentials.
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &["Host: localhost"])
    }

    /// A request with these lines in its head.
    pub fn send(&self, method: &str, path: &str, head: &[&str]) -> Answer {
        send(self.connect(), method, path, head)
    }

    /// An event stream, with these lines in its head.
    pub fn events(&self, query: &str, head: &[&str]) -> Events {
        events(
            self.connect(),
            query,
            &[&["Host: localhost"], head].concat(),
        )
    }
}

/// A request over a connection, with these lines in its head.
pub fn send(mut to: impl Read + Write, method: &str, path: &str, head: &[&str]) -> Answer {
    let head: String = head.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{head}\r\n");
    to.write_all(request.as_bytes()).unwrap();
    to.flush().unwrap();
    read(&mut BufReader::new(to))
}

/// An event stream over a connection, with these lines in its head.
pub fn events(mut to: impl Read + Write + Send + 'static, query: &str, head: &[&str]) -> Events {
    let head: String = head.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("GET /api/v1/events{query} HTTP/1.1\r\n{head}\r\n");
    to.write_all(request.as_bytes()).unwrap();
    to.flush().unwrap();
    let mut reader = BufReader::new(Box::new(to) as Box<dyn Read + Send>);
    let head = read_head(&mut reader);
    Events {
        status: head.status,
        reader,
        text: String::new(),
    }
}

/// A percent-encoded segment of a path.
pub fn segment(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// An open stream of events.
pub struct Events {
    /// The status code.
    pub status: u16,
    reader: BufReader<Box<dyn Read + Send>>,
    text: String,
}

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its id, if it has one.
    pub id: Option<i64>,
    /// Its kind.
    pub kind: String,
    /// Its data.
    pub data: Value,
}

impl Events {
    /// The next event; `None` at the end of the stream, or if none comes.
    pub fn next(&mut self) -> Option<Event> {
        let start = std::time::Instant::now();
        while start.elapsed() < DEADLINE {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    let mut lines = block.lines();
                    lines
                        .find_map(|line| line.strip_prefix(name))
                        .map(str::to_owned)
                };
                let Some(data) = field("data: ") else {
                    // A comment, which says that it is there.
                    continue;
                };
                return Some(Event {
                    id: field("id: ").map(|id| id.parse().unwrap()),
                    kind: field("event: ").unwrap(),
                    data: serde_json::from_str(&data).unwrap(),
                });
            }
            let chunk = chunk(&mut self.reader)?;
            self.text.push_str(&chunk);
        }
        None
    }

    /// The next event of which this is true.
    ///
    /// # Panics
    /// When the stream ends before.
    pub fn until(&mut self, what: &str, is: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.next();
            let event = event.unwrap_or_else(|| panic!("the stream ended before {what}"));
            if is(&event) {
                return event;
            }
        }
    }
}

/// A chunk of a body; `None` at its end, however it ends.
fn chunk(reader: &mut impl BufRead) -> Option<String> {
    let mut size = String::new();
    reader.read_line(&mut size).ok()?;
    let size = usize::from_str_radix(size.trim(), 16)
        .ok()
        .filter(|size| *size > 0)?;
    let mut bytes = vec![0; size + 2];
    reader.read_exact(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes[..size]).into_owned())
}

fn read_head(reader: &mut impl BufRead) -> Answer {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let first = lines.first().expect("an answer");
    let status = first.split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines[1..].iter().map(|line| {
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        (name.to_ascii_lowercase(), value.to_owned())
    });
    Answer {
        status,
        headers: headers.collect(),
        body: String::new(),
    }
}

fn read(reader: &mut impl BufRead) -> Answer {
    let mut answer = read_head(reader);
    if answer.header("transfer-encoding") == Some("chunked") {
        while let Some(chunk) = chunk(reader) {
            answer.body.push_str(&chunk);
        }
    } else if let Some(length) = answer.header("content-length") {
        let mut body = reader.take(length.parse().unwrap());
        body.read_to_string(&mut answer.body).unwrap();
    } else {
        reader.read_to_string(&mut answer.body).unwrap();
    }
    answer
}

/// Waits until a request is answered as it should be.
pub fn until(http: &Http, path: &str, is: impl Fn(&Answer) -> bool) -> Answer {
    let mut last = None;
    let start = std::time::Instant::now();
    while start.elapsed() < DEADLINE {
        let answer = http.get(path);
        if is(&answer) {
            return answer;
        }
        last = Some(answer);
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{path} does not become what it should: {last:?}");
}
