//! journald's own protocol: one datagram an event, with its fields.

use std::fmt;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

const SOCKET: &str = "/run/systemd/journal/socket";

/// Larger datagrams do not get through everywhere; a text that long is cut.
const LONGEST: usize = 32 << 10;

/// Sends events to journald.
pub struct Journald {
    socket: UnixDatagram,
}

impl Journald {
    /// If standard error is connected to the journal: then systemd has said so by its device and
    /// inode.
    pub fn of_stderr() -> Option<Self> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let found = std::fs::metadata("/proc/self/fd/2").ok()?;
        if stream != format!("{}:{}", found.dev(), found.ino()) {
            return None;
        }
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(SOCKET).ok()?;
        Some(Self { socket })
    }
}

impl<S: Subscriber> Layer<S> for Journald {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let datagram = encode(event);
        // If journald is away: standard error leads to it too, and waits until it is back.
        if self.socket.send(&datagram).is_err() {
            eprintln!("{}", String::from_utf8_lossy(&datagram).replace('\n', " "));
        }
    }
}

fn encode(event: &Event<'_>) -> Vec<u8> {
    // syslog's numbers.
    let priority = match *event.metadata().level() {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    };
    let mut fields = Fields(Vec::new());
    fields.put("PRIORITY", &priority.to_string());
    fields.put("SYSLOG_IDENTIFIER", "spcd");
    fields.put("TARGET", event.metadata().target());
    event.record(&mut fields);
    fields.0
}

/// Fields in journald's encoding: the length is given, so that a value may hold line breaks and
/// cannot pass for another field.
struct Fields(Vec<u8>);

impl Fields {
    fn put(&mut self, name: &str, value: &str) {
        let value = value.as_bytes();
        let value = value.get(..value.len().min(LONGEST)).unwrap_or(value);
        self.0.extend(name.as_bytes());
        self.0.push(b'\n');
        self.0.extend((value.len() as u64).to_le_bytes());
        self.0.extend(value);
        self.0.push(b'\n');
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(&name(field.name()), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.put(&name(field.name()), &text);
    }
}

/// Capital letters, digits and underscores, beginning with a letter; our own fields have a prefix.
fn name(field: &str) -> String {
    if field == "message" {
        return "MESSAGE".to_owned();
    }
    let upper = field.chars().map(|c| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    });
    "SPCD_".chars().chain(upper).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_with_line_breaks_stays_one_field() {
        let mut fields = Fields(Vec::new());
        fields.put("A", "one\nPRIORITY=0");
        assert_eq!(fields.0, b"A\n\x0e\0\0\0\0\0\0\0one\nPRIORITY=0\n");
        assert_eq!(name("message"), "MESSAGE");
        assert_eq!(name("under.way"), "SPCD_UNDER_WAY");
    }
}
