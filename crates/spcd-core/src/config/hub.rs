//! The block `hub` of `spcd.hcl`: how the daemon keeps in touch with its database.

use std::collections::BTreeMap;

use spcd_lang::nearest::nearest;
use spcd_lang::settings::Section;
use spcd_lang::syntax::Problem;

/// What can be set: the name, what holds where nothing is said, the least and the most. All but
/// `pool_size` are milliseconds.
const KNOWN: [Known; 6] = [
    // Of the about hundred that a server lets in.
    Known::new("pool_size", 10, 1, 1000),
    Known::new("keepalive", 60_000, 1000, 86_400_000),
    Known::new("statement_timeout", 300_000, 5000, 86_400_000).or_none(),
    // Whoever wants to read the table meanwhile has to wait as well.
    Known::new("lock_timeout", 500, 10, 60_000),
    Known::new("backoff_min", 100, 10, 60_000),
    Known::new("backoff_max", 10_000, 100, 3_600_000),
];

struct Known {
    name: &'static str,
    default: u64,
    least: u64,
    most: u64,
    /// 0 means none.
    none: bool,
}

/// Settings of the daemon's sessions with the hub. Times are in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubSettings {
    /// How many sessions are shared by all short work.
    pub pool_size: u64,
    /// How often a session that does nothing is spoken to.
    pub keepalive: u64,
    /// How long one statement may take; 0: as long as it wants.
    pub statement_timeout: u64,
    /// How long a write waits for a table that somebody uses.
    pub lock_timeout: u64,
    /// The pause before the hub is tried again for the first time.
    pub backoff_min: u64,
    /// The longest such pause.
    pub backoff_max: u64,
}

/// What was said of [`HubSettings`], by name.
pub type HubGiven = BTreeMap<&'static str, u64>;

impl Known {
    const fn new(name: &'static str, default: u64, least: u64, most: u64) -> Self {
        Self {
            name,
            default,
            least,
            most,
            none: false,
        }
    }

    const fn or_none(mut self) -> Self {
        self.none = true;
        self
    }

    fn wants(&self) -> String {
        if self.name == "pool_size" {
            return format!("expected a number from {} to {}", self.least, self.most);
        }
        let none = if self.none { ", or 0 for none" } else { "" };
        let (least, most) = (shown(self.least), shown(self.most));
        format!("expected a time from \"{least}\" to \"{most}\"{none}")
    }
}

impl HubSettings {
    /// The first that says something counts.
    pub fn of(given: &[&HubGiven]) -> Self {
        let value = |name: &str| {
            let said = given.iter().find_map(|given| given.get(name).copied());
            let default = KNOWN.iter().find(|known| known.name == name);
            said.unwrap_or_else(|| default.map_or(0, |known| known.default))
        };
        let backoff_min = value("backoff_min");
        Self {
            pool_size: value("pool_size"),
            keepalive: value("keepalive"),
            statement_timeout: value("statement_timeout"),
            lock_timeout: value("lock_timeout"),
            backoff_min,
            backoff_max: value("backoff_max").max(backoff_min),
        }
    }

    /// For programs that end before any of this matters: no time-outs.
    pub fn none() -> Self {
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

/// The value of one setting, from text: `"60s"`, `"500ms"`, `"5m"`, or a number of seconds.
///
/// # Errors
/// What was expected instead.
pub fn hub_value(name: &str, text: &str) -> Result<u64, String> {
    let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
        return Err(format!("there is no setting `{name}`"));
    };
    let text = text.trim();
    let value = match name {
        "pool_size" => text.parse().ok(),
        _ => crate::duration::milliseconds(text),
    };
    value
        .filter(|value| (known.least..=known.most).contains(value) || (known.none && *value == 0))
        .ok_or_else(|| known.wants())
}

/// Reads the block; what is wrong is a problem with its place.
pub(super) fn hub(section: &Section, problems: &mut Vec<Problem>) -> HubGiven {
    let mut given = HubGiven::new();
    let settings = &section.settings;
    if !section.labels.is_empty() {
        problems.push(Problem::new(section.span, "`hub` has no label").hint("write `hub { … }`"));
    }
    for setting in &settings.list {
        let Some(known) = KNOWN.iter().find(|known| known.name == &*setting.name) else {
            let message = format!("`hub` has no setting `{}`", setting.name);
            let problem = Problem::new(setting.span, message);
            let names = || KNOWN.iter().map(|known| known.name);
            problems.push(match nearest(&setting.name, names()) {
                Some(near) => problem.hint(format!("did you mean `{near}`?")),
                None => problem.hint(format!(
                    "there are: {}",
                    names().collect::<Vec<_>>().join(", ")
                )),
            });
            continue;
        };
        let Some(text) = settings.text(known.name, problems) else {
            continue;
        };
        match hub_value(known.name, &text) {
            Ok(value) => {
                given.insert(known.name, value);
            }
            Err(wanted) => {
                let message = format!("{wanted} for `{}`", known.name);
                problems.push(Problem::new(setting.value_span, message));
            }
        }
    }
    for section in &settings.sections {
        let message = format!("`hub` has no block `{}`", section.kind);
        problems.push(Problem::new(section.span, message));
    }
    given
}

/// The names of all settings of the block: their values may be shown.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|known| known.name)
}

fn shown(milliseconds: u64) -> String {
    match milliseconds {
        n if n % 3_600_000 == 0 => format!("{}h", n / 3_600_000),
        n if n % 60_000 == 0 => format!("{}m", n / 60_000),
        n if n % 1000 == 0 => format!("{}s", n / 1000),
        n => format!("{n}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::{HubGiven, HubSettings, hub_value};

    #[test]
    fn a_time_is_seconds_or_has_a_unit() {
        assert_eq!(hub_value("keepalive", "60"), Ok(60_000));
        assert_eq!(hub_value("keepalive", "2 m"), Ok(120_000));
        assert_eq!(hub_value("lock_timeout", "500ms"), Ok(500));
        assert_eq!(hub_value("pool_size", "20"), Ok(20));
        assert_eq!(hub_value("statement_timeout", "0"), Ok(0));
        for (name, text) in [
            ("pool_size", "0"),
            ("pool_size", "10s"),
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
        let flags = HubGiven::from([("keepalive", 1000)]);
        let file = HubGiven::from([
            ("keepalive", 2000),
            ("pool_size", 3),
            ("backoff_min", 20_000),
        ]);
        let settings = HubSettings::of(&[&flags, &file]);
        assert_eq!((settings.keepalive, settings.pool_size), (1000, 3));
        // The longest pause is not shorter than the first.
        assert_eq!(settings.backoff_max, 20_000);
    }
}
