//! The log: lines on a terminal, fields in journald, otherwise JSON. [`observation`] has the metrics.

mod observation;

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use spcd_core::terminal::escape_controls_beside_colours;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{Directive, LevelFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

pub use observation::{Observation, encode, observe};

static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts the log. By default commands log warnings and errors, and the daemon also information.
pub fn start(log: Option<&str>, daemon: bool) {
    let default = if daemon { "info" } else { "warn" };
    let filter = log.unwrap_or(default);
    let (filter, wrong) = match parse(filter) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(default), Some(error)),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let terminal = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(|| LogWriter);
    let layer = match journald() {
        Some(journald) => journald.boxed(),
        None if daemon && !terminal => lines.json().flatten_event(true).boxed(),
        None => lines.with_ansi(terminal).with_target(daemon).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .init();
    let _ = FILTER.set(handle);
    if let Some(error) = wrong {
        tracing::warn!(
            error,
            default,
            "the log filter cannot be used; the default is used instead"
        );
    }
}

/// Standard error with escaped control characters. The formatter escapes ESC in values, so the
/// remaining ones are its own colours.
struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        io::stderr().write_all(escape_controls_beside_colours(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Returns the layer that writes to journald if standard error is connected to the journal, which
/// systemd marks by the journal's device and inode.
fn journald() -> Option<tracing_journald::Layer> {
    let stream = std::env::var("JOURNAL_STREAM").ok()?;
    let stderr = std::fs::metadata("/proc/self/fd/2").ok()?;
    if stream != format!("{}:{}", stderr.dev(), stderr.ino()) {
        return None;
    }
    // The priorities of syslog. The library's default maps `info` to notice.
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    let layer = tracing_journald::layer().ok()?;
    Some(
        layer
            .with_field_prefix(Some("SPCD".to_owned()))
            .with_priority_mappings(priorities),
    )
}

/// Replaces the filter of the log.
///
/// # Errors
/// The error in the filter.
pub fn set_filter(filter: &str) -> Result<(), String> {
    let filter = parse(filter)?;
    match FILTER.get() {
        Some(handle) => handle.reload(filter).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

/// Parses a filter, and always excludes two targets. The driver's log shows whole statements with their
/// parameters, which may be secret. The file watcher's log reports every write, so a log file in a
/// watched directory would grow forever.
fn parse(filter: &str) -> Result<EnvFilter, String> {
    // EnvFilter accepts any word as a target, and would then log nothing.
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let is_directive = |word: &str| word.contains(['=', '[', ':']) || word.starts_with("spcd");
    let words = filter.split(',').map(str::trim);
    if let Some(word) =
        (words.filter(|word| !word.is_empty())).find(|word| !is_level(word) && !is_directive(word))
    {
        return Err(format!(
            "`{word}` is neither a level (error, warn, info, debug, trace, off) nor `target=level`"
        ));
    }
    let mut filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
    for quiet in ["tokio_postgres=warn", "notify=warn", "inotify=warn"] {
        let quiet: Directive = (quiet.parse()).map_err(|error: ParseError| error.to_string())?;
        filter = filter.add_directive(quiet);
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use tracing::{Level, enabled, subscriber};

    use super::*;

    #[test]
    fn some_logs_are_not_to_be_had() {
        for filter in ["trace", "debug,notify=trace,tokio_postgres=trace"] {
            let logs = tracing_subscriber::registry().with(parse(filter).unwrap());
            subscriber::with_default(logs, || {
                assert!(enabled!(target: "spcd::watch", Level::DEBUG), "{filter}");
                assert!(enabled!(target: "notify::inotify", Level::WARN), "{filter}");
                for is_logged in [
                    enabled!(target: "notify::inotify", Level::TRACE),
                    enabled!(target: "notify::inotify", Level::INFO),
                    enabled!(target: "inotify", Level::TRACE),
                    enabled!(target: "tokio_postgres::query", Level::DEBUG),
                ] {
                    assert!(!is_logged, "{filter}");
                }
            });
        }
    }
}
