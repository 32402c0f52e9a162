//! Names of imported tables and columns.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::diff::MAX_NAME_BYTES;
use crate::hash::Hasher;
use crate::pattern::Pattern;

/// How the names of a source become names here: `names`, `prefix`, `rename` and `exclude_columns` of a
/// block `import`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Naming {
    /// Treatment of names that `rename` does not list.
    pub style: NameStyle,
    /// Prefix of tables that `rename` does not list.
    pub prefix: String,
    /// Names here, by the name of a table or a column in the source, or by `table.column`.
    pub rename: BTreeMap<String, String>,
    /// Patterns of columns to leave out.
    pub exclude_columns: Vec<String>,
}

/// Treatment of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameStyle {
    /// Keeps the source's names.
    #[default]
    Keep,
    /// Lower case.
    Lower,
    /// Lower case, with an underscore between words.
    Snake,
}

impl NameStyle {
    /// Values of the attribute `names`.
    pub const VALUES: [&str; 3] = ["keep", "lower", "snake"];

    /// Returns the style of that name.
    pub fn from_name(word: &str) -> Option<Self> {
        match word {
            "keep" => Some(Self::Keep),
            "lower" => Some(Self::Lower),
            "snake" => Some(Self::Snake),
            _ => None,
        }
    }

    fn apply(self, name: &str) -> String {
        match self {
            Self::Keep => name.to_owned(),
            Self::Lower => name.to_lowercase(),
            Self::Snake => snake(name),
        }
    }
}

impl Naming {
    /// Returns whether every name stays as it is in the source.
    pub fn keeps_names(&self) -> bool {
        self.style == NameStyle::Keep && self.prefix.is_empty() && self.rename.is_empty()
    }

    /// Returns the name here of a table of the source.
    pub fn table(&self, remote: &str) -> String {
        match self.rename.get(remote) {
            Some(name) => name.clone(),
            None => truncated(format!("{}{}", self.prefix, self.style.apply(remote))),
        }
    }

    /// Returns the name here of a column of the source.
    pub fn column(&self, table: &str, remote: &str) -> String {
        match self.column_key(table, remote) {
            Some(key) => self.rename[&*key].clone(),
            None => truncated(self.style.apply(remote)),
        }
    }

    /// Returns the key of `rename` that gives a column its name. One with the table's name comes first.
    pub fn column_key<'a>(&self, table: &str, remote: &'a str) -> Option<Cow<'a, str>> {
        if self.rename.is_empty() {
            return None;
        }
        let qualified = format!("{table}.{remote}");
        match self.rename.contains_key(&qualified) {
            true => Some(Cow::Owned(qualified)),
            false => (self.rename.contains_key(remote)).then_some(Cow::Borrowed(remote)),
        }
    }

    /// Returns the patterns of columns to leave out. Invalid ones match nothing; `load` has reported
    /// them.
    pub fn excluded_columns(&self) -> Vec<(&str, Pattern)> {
        let pattern = |text: &'_ String| Pattern::new(text).ok();
        (self.exclude_columns.iter())
            .filter_map(|text| Some((text.as_str(), pattern(text)?)))
            .collect()
    }

    /// Adds it to the hash of a target.
    pub(super) fn put(&self, hasher: &mut Hasher) {
        hasher.put("naming");
        hasher.put(&format!("{:?}", self.style));
        hasher.put(&self.prefix);
        for (remote, name) in &self.rename {
            hasher.put(remote);
            hasher.put(name);
        }
        hasher.put("exclude_columns");
        for pattern in &self.exclude_columns {
            hasher.put(pattern);
        }
    }
}

/// Cuts a name as the server would.
fn truncated(mut name: String) -> String {
    if name.len() > MAX_NAME_BYTES {
        name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
    }
    name
}

/// Returns the name in lower case, with an underscore between words. Underscores of the name stay; a name
/// without letters and digits stays as it is.
fn snake(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    let mut before: Option<char> = None;
    let mut characters = name.chars().peekable();
    let mut is_gap = false;
    while let Some(c) = characters.next() {
        if !c.is_alphanumeric() && c != '_' {
            is_gap = true;
            continue;
        }
        let next_is_lower = characters.peek().is_some_and(|next| next.is_lowercase());
        let begins_word = c.is_uppercase()
            && before.is_some_and(|before| {
                before.is_lowercase()
                    || before.is_numeric()
                    || (before.is_uppercase() && next_is_lower)
            });
        if (is_gap || begins_word) && c != '_' && !out.is_empty() && !out.ends_with('_') {
            out.push('_');
        }
        out.extend(c.to_lowercase());
        before = Some(c);
        is_gap = false;
    }
    match out.is_empty() {
        true => name.to_owned(),
        false => out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_names_of_any_style() {
        for (name, expected) in [
            ("CustomerOrders", "customer_orders"),
            ("Old Name", "old_name"),
            ("orderID", "order_id"),
            ("HTTPServer", "http_server"),
            ("Address2Line", "address2_line"),
            ("already_snake", "already_snake"),
            ("_id", "_id"),
            ("a__b", "a__b"),
            ("Größe (cm)", "größe_cm"),
            (" a - b ", "a_b"),
            ("ÄÖ", "äö"),
            ("Last_Name", "last_name"),
            ("---", "---"),
            ("", ""),
        ] {
            assert_eq!(snake(name), expected, "{name:?}");
            assert_eq!(snake(expected), expected, "{name:?} twice");
        }
    }

    #[test]
    fn a_listed_name_is_final_and_the_others_get_style_and_prefix() {
        let list = [
            ("Old Name", "fresh"),
            ("Orders.ID", "order_id"),
            ("ID", "Key"),
        ];
        let rename = list.map(|(from, to)| (from.to_owned(), to.to_owned()));
        let naming = Naming {
            style: NameStyle::Lower,
            prefix: "erp_".into(),
            rename: rename.into(),
            exclude_columns: Vec::new(),
        };
        assert_eq!(naming.table("Old Name"), "fresh");
        assert_eq!(naming.table("Orders"), "erp_orders");
        assert_eq!(naming.column("Orders", "ID"), "order_id");
        assert_eq!(naming.column("Items", "ID"), "Key");
        assert_eq!(naming.column("Items", "Price"), "price");
        assert!(Naming::default().keeps_names());
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let naming = Naming {
            prefix: "x".into(),
            ..Naming::default()
        };
        assert_eq!(
            naming.table(&"ä".repeat(32)),
            format!("x{}", "ä".repeat(31))
        );
    }
}
