//! What a block `health`, the settings file or the environment says of the schedule.

use super::Schedule;
use crate::duration;

/// The attributes of a block `health`.
pub const KNOWN: [&str; 5] = ["enabled", "interval", "attempts", "pause", "timeout"];

/// No interval and no pause is shorter: a source is asked over the hub, which has other work.
const SHORTEST: u64 = 100;
/// And none longer than a day: whoever wants that turns the probe off.
const LONGEST: u64 = 86_400_000;
/// The most attempts: with the pause doubled each time, there is no use for more.
const MOST: u32 = 20;

/// What was said; what was not, somebody else says. Times are milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// See [`Schedule::enabled`].
    pub enabled: Option<bool>,
    /// See [`Schedule::interval`].
    pub interval: Option<u64>,
    /// See [`Schedule::attempts`].
    pub attempts: Option<u32>,
    /// See [`Schedule::pause`].
    pub pause: Option<u64>,
    /// See [`Schedule::timeout`].
    pub timeout: Option<u64>,
}

/// A value that cannot be used, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({hint})")]
pub struct Unfit {
    /// What is wrong.
    pub message: String,
    /// What to write.
    pub hint: &'static str,
}

impl Options {
    /// Takes a value as people write it.
    ///
    /// # Errors
    /// One that cannot be used. (A name that is none of [`KNOWN`] is the caller's to refuse.)
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), Unfit> {
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

    /// The same with what another one says where this one says nothing.
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

    /// The schedule, with the defaults where nobody says anything.
    pub fn schedule(self) -> Schedule {
        let defaults = Schedule::default();
        Schedule {
            enabled: self.enabled.unwrap_or(defaults.enabled),
            interval: self.interval.unwrap_or(defaults.interval),
            attempts: self.attempts.unwrap_or(defaults.attempts),
            pause: self.pause.unwrap_or(defaults.pause),
            timeout: self.timeout.unwrap_or(defaults.timeout),
        }
    }
}

fn boolean(text: &str) -> Result<bool, Unfit> {
    match text {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err(Unfit {
            message: "expected true or false for `enabled`".into(),
            hint: "write `enabled = false`",
        }),
    }
}

fn attempts(text: &str) -> Result<u32, Unfit> {
    let number = text.parse().ok().filter(|number| *number <= MOST);
    number.ok_or_else(|| Unfit {
        message: "this is no number for `attempts`".into(),
        hint: "write a whole number up to 20",
    })
}

fn time(name: &str, text: &str) -> Result<u64, Unfit> {
    duration::milliseconds(text)
        .filter(|time| (SHORTEST..=LONGEST).contains(time))
        .ok_or_else(|| Unfit {
            message: format!("this is no duration for `{name}`"),
            hint: "write a number of seconds, or `\"500ms\"`, `\"30s\"`, `\"5m\"`; from 100 ms to a day",
        })
}

#[cfg(test)]
mod tests {
    use super::{Options, Schedule};

    #[test]
    fn who_stands_nearer_says() {
        let mut connection = Options::default();
        connection.set("interval", "500ms").unwrap();
        let mut plugin = Options::default();
        plugin.set("interval", "1m").unwrap();
        plugin.set("attempts", "0").unwrap();
        let mut daemon = Options::default();
        daemon.set("enabled", "off").unwrap();
        daemon.set("pause", "2").unwrap();
        assert_eq!(
            connection.or(plugin).or(daemon).schedule(),
            Schedule {
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
            let mut options = Options::default();
            assert!(options.set(name, text).is_err(), "{name} = {text}");
            assert_eq!(options, Options::default());
        }
    }
}
