//! Reads the block `hub` of `spcd.hcl`: the daemon's sessions with its database.

use std::collections::BTreeMap;

use spcd_lang::settings::NestedBlock;
use spcd_lang::syntax::Problem;

/// Settings: name, default, minimum and maximum. All but [`COUNTS`] are milliseconds.
const SETTINGS: [HubSetting; 8] = [
    // A server allows 100 sessions by default.
    HubSetting::new("pool_size", 10, 1, 1000),
    // The default says that the number follows the throughput.
    HubSetting::new("writers", 0, 1, HubSettings::MAX_WRITERS as u64),
    HubSetting::new("keepalive", 60_000, 1000, 86_400_000),
    HubSetting::new("statement_timeout", 300_000, 5000, 86_400_000).or_zero(),
    // Readers queue behind a write that waits for a lock.
    HubSetting::new("lock_timeout", 500, 10, 60_000),
    HubSetting::new("backoff_min", 100, 10, 60_000),
    HubSetting::new("backoff_max", 10_000, 100, 3_600_000),
    HubSetting::new("gateway_patience", 60_000, 1000, 86_400_000),
];

/// Settings that are numbers.
const COUNTS: [&str; 2] = ["pool_size", "writers"];

struct HubSetting {
    name: &'static str,
    default: u64,
    min: u64,
    max: u64,
    /// Whether 0 disables it.
    zero_disables: bool,
}

/// Settings of the daemon's sessions with the hub. Times are in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubSettings {
    /// Number of pooled sessions.
    pub pool_size: u64,
    /// Number of writing sessions; 0 if it follows the throughput.
    pub writers: u64,
    /// Interval of a statement on an idle session.
    pub keepalive: u64,
    /// Limit of one statement; 0 disables it.
    pub statement_timeout: u64,
    /// Limit of a write's wait for a table lock.
    pub lock_timeout: u64,
    /// First pause before reconnecting to the hub.
    pub backoff_min: u64,
    /// Longest pause before reconnecting to the hub.
    pub backoff_max: u64,
    /// Time without an answer after which other gateways take over the lanes of one of several, in
    /// milliseconds.
    pub gateway_patience: u64,
}

/// Given values of [`HubSettings`], by name.
pub type HubOverrides = BTreeMap<&'static str, u64>;

impl HubSetting {
    const fn new(name: &'static str, default: u64, min: u64, max: u64) -> Self {
        Self {
            name,
            default,
            min,
            max,
            zero_disables: false,
        }
    }

    const fn or_zero(mut self) -> Self {
        self.zero_disables = true;
        self
    }

    fn expectation(&self) -> String {
        if COUNTS.contains(&self.name) {
            return format!("expected a number from {} to {}", self.min, self.max);
        }
        let none = if self.zero_disables {
            ", or 0 for none"
        } else {
            ""
        };
        let (least, most) = (duration_text(self.min), duration_text(self.max));
        format!("expected a time from \"{least}\" to \"{most}\"{none}")
    }
}

impl HubSettings {
    /// Maximum number of writing sessions. More have not been measured.
    pub const MAX_WRITERS: usize = 16;

    /// Combines given values: for each setting the first one counts.
    pub fn of(given: &[&HubOverrides]) -> Self {
        let value = |name: &str| {
            let given_value = given.iter().find_map(|given| given.get(name).copied());
            let default = SETTINGS.iter().find(|known| known.name == name);
            given_value.unwrap_or_else(|| default.map_or(0, |known| known.default))
        };
        let backoff_min = value("backoff_min");
        Self {
            pool_size: value("pool_size"),
            writers: value("writers"),
            keepalive: value("keepalive"),
            statement_timeout: value("statement_timeout"),
            lock_timeout: value("lock_timeout"),
            backoff_min,
            backoff_max: value("backoff_max").max(backoff_min),
            gateway_patience: value("gateway_patience"),
        }
    }

    /// Returns settings without time-outs, for short-lived commands.
    pub fn without_timeouts() -> Self {
        Self {
            statement_timeout: 0,
            lock_timeout: 0,
            ..Self::of(&[])
        }
    }
}

impl Default for HubSettings {
    fn default() -> Self {
        Self::of(&[])
    }
}

/// Parses one setting: `"60s"`, `"500ms"`, `"5m"`, or a number of seconds.
///
/// # Errors
/// The expected values.
pub fn hub_value(name: &str, text: &str) -> Result<u64, String> {
    let Some(known) = SETTINGS.iter().find(|known| known.name == name) else {
        return Err(format!("there is no setting `{name}`"));
    };
    let text = text.trim();
    let value = match name {
        _ if COUNTS.contains(&name) => text.parse().ok(),
        _ => crate::duration::milliseconds(text),
    };
    value
        .filter(|value| {
            (known.min..=known.max).contains(value) || (known.zero_disables && *value == 0)
        })
        .ok_or_else(|| known.expectation())
}

/// Reads the block and reports its problems.
pub(super) fn hub(section: &NestedBlock, problems: &mut Vec<Problem>) -> HubOverrides {
    let mut given = HubOverrides::new();
    let settings = &section.settings;
    if !section.labels.is_empty() {
        problems.push(Problem::new(section.span, "`hub` has no label").hint("write `hub { … }`"));
    }
    section.report_unknown("setting", &SETTINGS.map(|known| known.name), problems);
    for setting in &settings.list {
        let Some(known) = SETTINGS.iter().find(|known| known.name == &*setting.name) else {
            continue;
        };
        let Some(text) = settings.text(known.name, problems) else {
            continue;
        };
        match hub_value(known.name, &text) {
            Ok(value) => {
                given.insert(known.name, value);
            }
            Err(expected) => {
                let message = format!("{expected} for `{}`", known.name);
                problems.push(Problem::new(setting.value_span, message));
            }
        }
    }
    given
}

/// Returns the names of all settings of the block: their values may be shown.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|known| known.name)
}

fn duration_text(milliseconds: u64) -> String {
    match milliseconds {
        n if n % 3_600_000 == 0 => format!("{}h", n / 3_600_000),
        n if n % 60_000 == 0 => format!("{}m", n / 60_000),
        n if n % 1000 == 0 => format!("{}s", n / 1000),
        n => format!("{n}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::{HubOverrides, HubSettings, hub_value};

    #[test]
    fn a_time_is_seconds_or_has_a_unit() {
        assert_eq!(hub_value("keepalive", "60"), Ok(60_000));
        assert_eq!(hub_value("keepalive", "2 m"), Ok(120_000));
        assert_eq!(hub_value("lock_timeout", "500ms"), Ok(500));
        assert_eq!(hub_value("pool_size", "20"), Ok(20));
        assert_eq!(hub_value("writers", "16"), Ok(16));
        assert_eq!(hub_value("statement_timeout", "0"), Ok(0));
        for (name, text) in [
            ("pool_size", "0"),
            ("pool_size", "10s"),
            ("writers", "0"),
            ("writers", "17"),
            ("keepalive", "0"),
            ("keepalive", "-1"),
            ("keepalive", "soon"),
            ("keepalive", "18446744073709551615h"),
            ("lock_timeout", "0"),
            ("statement_timeout", "1s"),
        ] {
            assert!(hub_value(name, text).is_err(), "{name} = {text}");
        }
        assert_eq!(
            hub_value("statement_timeout", "1s"),
            Err("expected a time from \"5s\" to \"24h\", or 0 for none".into())
        );
    }

    #[test]
    fn the_first_that_says_something_counts() {
        let flags = HubOverrides::from([("keepalive", 1000)]);
        let file = HubOverrides::from([
            ("keepalive", 2000),
            ("pool_size", 3),
            ("backoff_min", 20_000),
        ]);
        let settings = HubSettings::of(&[&flags, &file]);
        assert_eq!((settings.keepalive, settings.pool_size), (1000, 3));
        assert_eq!(settings.writers, 0);
        // The longest pause is not shorter than the first.
        assert_eq!(settings.backoff_max, 20_000);
    }
}
