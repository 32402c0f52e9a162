//! Probe options of a block `health`, the settings file or the environment.

use super::ProbeSchedule;
use crate::duration;

/// Attributes of a block `health`.
pub const OPTION_NAMES: [&str; 5] = ["enabled", "interval", "attempts", "pause", "timeout"];

/// Shortest interval and pause: probes run over the hub, which has other work.
const MIN_PAUSE_MS: u64 = 100;
/// Longest interval and pause, a day. A user who wants more disables the probe.
const MAX_PAUSE_MS: u64 = 86_400_000;
/// Maximum number of attempts: the pause doubles each time.
const MAX_ATTEMPTS: u32 = 20;

/// Probe options; those that are `None` come from the next source. Times are milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProbeOptions {
    /// See [`ProbeSchedule::enabled`].
    pub enabled: Option<bool>,
    /// See [`ProbeSchedule::interval`].
    pub interval: Option<u64>,
    /// See [`ProbeSchedule::attempts`].
    pub attempts: Option<u32>,
    /// See [`ProbeSchedule::pause`].
    pub pause: Option<u64>,
    /// See [`ProbeSchedule::timeout`].
    pub timeout: Option<u64>,
}

/// Invalid value of an option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({hint})")]
pub struct InvalidOption {
    /// Message: what is wrong.
    pub message: String,
    /// Hint: what to write.
    pub hint: &'static str,
}

impl ProbeOptions {
    /// Sets an option from its text.
    ///
    /// # Errors
    /// The value is invalid. (The caller refuses names that are not in [`OPTION_NAMES`].)
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), InvalidOption> {
        let text = text.trim();
        match name {
            "enabled" => self.enabled = Some(boolean(text)?),
            "attempts" => self.attempts = Some(attempts(text)?),
            "interval" => self.interval = Some(time(name, text)?),
            "pause" => self.pause = Some(time(name, text)?),
            _ => self.timeout = Some(time(name, text)?),
        }
        Ok(())
    }

    /// Returns the options with those of `other` where this one has none.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            enabled: self.enabled.or(other.enabled),
            interval: self.interval.or(other.interval),
            attempts: self.attempts.or(other.attempts),
            pause: self.pause.or(other.pause),
            timeout: self.timeout.or(other.timeout),
        }
    }

    /// Returns the schedule, with defaults for missing options.
    pub fn schedule(self) -> ProbeSchedule {
        let defaults = ProbeSchedule::default();
        ProbeSchedule {
            enabled: self.enabled.unwrap_or(defaults.enabled),
            interval: self.interval.unwrap_or(defaults.interval),
            attempts: self.attempts.unwrap_or(defaults.attempts),
            pause: self.pause.unwrap_or(defaults.pause),
            timeout: self.timeout.unwrap_or(defaults.timeout),
        }
    }
}

fn boolean(text: &str) -> Result<bool, InvalidOption> {
    match text {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err(InvalidOption {
            message: "expected true or false for `enabled`".into(),
            hint: "write `enabled = false`",
        }),
    }
}

fn attempts(text: &str) -> Result<u32, InvalidOption> {
    let number = text.parse().ok().filter(|number| *number <= MAX_ATTEMPTS);
    number.ok_or_else(|| InvalidOption {
        message: "this is not a number for `attempts`".into(),
        hint: "write a whole number up to 20",
    })
}

fn time(name: &str, text: &str) -> Result<u64, InvalidOption> {
    duration::milliseconds(text)
        .filter(|time| (MIN_PAUSE_MS..=MAX_PAUSE_MS).contains(time))
        .ok_or_else(|| InvalidOption {
            message: format!("this is not a duration for `{name}`"),
            hint: "write a number of seconds, or `\"500ms\"`, `\"30s\"`, `\"5m\"`; from 100 ms to a day",
        })
}

#[cfg(test)]
mod tests {
    use super::{ProbeOptions, ProbeSchedule};

    #[test]
    fn who_stands_nearer_says() {
        let mut connection = ProbeOptions::default();
        connection.set("interval", "500ms").unwrap();
        let mut plugin = ProbeOptions::default();
        plugin.set("interval", "1m").unwrap();
        plugin.set("attempts", "0").unwrap();
        let mut daemon = ProbeOptions::default();
        daemon.set("enabled", "off").unwrap();
        daemon.set("pause", "2").unwrap();
        assert_eq!(
            connection.or(plugin).or(daemon).schedule(),
            ProbeSchedule {
                enabled: false,
                interval: 500,
                attempts: 0,
                pause: 2_000,
                timeout: 10_000,
            }
        );
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_way_out() {
        for (name, text) in [
            ("interval", ""),
            ("interval", "0"),
            ("interval", "99ms"),
            ("interval", "-1s"),
            ("interval", "2 days"),
            ("timeout", "99999999999999999999"),
            ("pause", "18446744073709551615h"),
            ("attempts", "21"),
            ("attempts", "-1"),
            ("enabled", "maybe"),
        ] {
            let mut options = ProbeOptions::default();
            assert!(options.set(name, text).is_err(), "{name} = {text}");
            assert_eq!(options, ProbeOptions::default());
        }
    }
}
