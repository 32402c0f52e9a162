//! Splits SQL texts into statements and finds the names in them.

/// A text split into statements; see [`statements`].
///
/// ```
/// let cut = spcd_client::statements("SELECT 1; SELECT");
/// assert_eq!((cut.complete, cut.rest), (vec!["SELECT 1"], "SELECT"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statements<'a> {
    /// Statements that end in a semicolon, without it.
    pub complete: Vec<&'a str>,
    /// Text after the last semicolon: empty, or the beginning of a statement.
    pub rest: &'a str,
}

/// Splits a text at the semicolons that end statements: not those inside quotes, comments,
/// parentheses, dollar quotes and SQL-standard function bodies. Empty statements are left out.
///
/// ```
/// let cut = spcd_client::statements("SELECT ';'; SELECT 2 -- two;\n; SELECT");
/// assert_eq!(cut.complete, ["SELECT ';'", "SELECT 2 -- two;"]);
/// assert_eq!(cut.rest, "SELECT");
/// ```
#[must_use]
pub fn statements(text: &str) -> Statements<'_> {
    let mut complete = Vec::new();
    let (mut from, mut depth, mut whole) = (0, 0_usize, true);
    // `BEGIN ATOMIC … END` in CREATE FUNCTION, with CASE … END inside.
    let (mut blocks, mut first, mut previous) = (0_usize, String::new(), String::new());
    let mut any = false;
    for token in Tokens::new(text) {
        whole = token.is_closed;
        match token.kind {
            SqlTokenKind::Semicolon if depth == 0 && blocks == 0 => {
                if any {
                    complete.push(text.get(from..token.start).unwrap_or_default().trim());
                }
                from = token.start + 1;
                (any, first, previous) = (false, String::new(), String::new());
                continue;
            }
            SqlTokenKind::Open => depth += 1,
            SqlTokenKind::Close => depth = depth.saturating_sub(1),
            SqlTokenKind::Word => {
                let word = token.text.to_ascii_uppercase();
                if first.is_empty() {
                    first.clone_from(&word);
                }
                let opens = word == "ATOMIC" && previous == "BEGIN" && first == "CREATE";
                blocks += usize::from(opens || (blocks > 0 && word == "CASE"));
                blocks = blocks.saturating_sub(usize::from(word == "END"));
                previous = word;
            }
            _ => {}
        }
        any = true;
    }
    let rest = text.get(from..).unwrap_or_default().trim();
    Statements {
        complete,
        // A comment alone is not a statement; an open comment or quote begins one.
        rest: if any || !whole || open_comment(rest) {
            rest
        } else {
            ""
        },
    }
}

/// Table name at the position of a server's error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TableReference {
    Qualified {
        schema: String,
        table: String,
    },
    /// Name without a schema.
    Bare(String),
    /// No name at this position.
    Nothing,
}

/// Returns the name at a position as the server reports it: in characters, from 1. A string literal
/// there holds the name (`'sales.orders'::regclass`).
pub(crate) fn reference_at(text: &str, position: u32) -> TableReference {
    let skip = usize::try_from(position)
        .unwrap_or(usize::MAX)
        .saturating_sub(1);
    let start = text.char_indices().nth(skip).map(|(at, _)| at);
    let Some(rest) = start.and_then(|at| text.get(at..)) else {
        return TableReference::Nothing;
    };
    let mut tokens = Tokens::new(rest).peekable();
    if let Some(literal) = tokens.next_if(|token| token.kind == SqlTokenKind::Text) {
        let inner = literal.literal();
        return qualified_reference(Tokens::new(&inner));
    }
    qualified_reference(tokens)
}

/// Returns the names before a dot anywhere in the text, also inside literals and function bodies:
/// the schemas that it may mean if the server does not report a position.
pub(crate) fn qualifiers(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut last: Option<String> = None;
    for token in Tokens::new(text) {
        if token.kind == SqlTokenKind::Dot {
            found.extend(last.take());
        }
        if token.kind == SqlTokenKind::Text {
            found.extend(qualifiers(&token.literal()));
        }
        last = token.name();
    }
    found.sort();
    found.dedup();
    found
}

/// Names in a statement that may be those of tables, and are not ASCII.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct NonAsciiTables {
    /// Schemas of the qualified names.
    pub(crate) schemas: Vec<String>,
    /// Whether a name without a schema stands where a table's name stands.
    pub(crate) has_bare: bool,
}

impl NonAsciiTables {
    pub(crate) fn is_empty(&self) -> bool {
        self.schemas.is_empty() && !self.has_bare
    }
}

/// Finds the names in a text that may be those of tables, and are not ASCII.
pub(crate) fn non_ascii_tables(text: &str) -> NonAsciiTables {
    const BEFORE_TABLE: [&str; 6] = ["FROM", "JOIN", "INTO", "UPDATE", "TABLE", "ONLY"];
    let mut found = NonAsciiTables::default();
    let mut names: Vec<Option<String>> = Vec::new();
    let mut is_after_keyword = false;
    for token in Tokens::new(text) {
        let name = token.name();
        if name.as_ref().is_some_and(|name| !name.is_ascii()) {
            match &names[..] {
                [.., Some(schema), None] => found.schemas.push(schema.clone()),
                _ => found.has_bare |= is_after_keyword,
            }
        }
        is_after_keyword = token.kind == SqlTokenKind::Word
            && BEFORE_TABLE
                .iter()
                .any(|word| token.text.eq_ignore_ascii_case(word));
        match token.kind {
            SqlTokenKind::Dot => names.push(None),
            _ => names = vec![name],
        }
    }
    found
}

/// Returns whether a statement that failed outside a transaction block can have left nothing
/// behind, so that it may be run again. A statement that can commit midway, or one of several,
/// cannot.
pub(crate) fn is_repeatable(text: &str) -> bool {
    let cut = statements(text);
    let one = match (cut.complete.as_slice(), cut.rest) {
        ([one], "") => one,
        ([], rest) => rest,
        _ => return false,
    };
    let first = Tokens::new(one).next();
    let word = first.map(|token| token.text.to_ascii_uppercase());
    !matches!(word.as_deref(), Some("CALL" | "DO"))
}

/// Returns the schemas of a search path as `SHOW search_path` prints it.
pub(crate) fn path_names(setting: &str, user: &str) -> Vec<String> {
    let names = Tokens::new(setting).filter_map(|token| token.name());
    let own = |name: String| {
        if name == "$user" {
            user.to_owned()
        } else {
            name
        }
    };
    names.map(own).collect()
}

fn qualified_reference<'a>(mut tokens: impl Iterator<Item = Token<'a>>) -> TableReference {
    let mut names: Vec<String> = Vec::new();
    while let Some(name) = tokens.next().and_then(|token| token.name()) {
        names.push(name);
        if tokens
            .next()
            .is_none_or(|token| token.kind != SqlTokenKind::Dot)
        {
            break;
        }
    }
    let Some(table) = names.pop() else {
        return TableReference::Nothing;
    };
    match names.pop() {
        Some(schema) => TableReference::Qualified { schema, table },
        None => TableReference::Bare(table),
    }
}

fn open_comment(text: &str) -> bool {
    let mut tokens = Tokens::new(text);
    tokens.by_ref().for_each(drop);
    tokens.open_comment
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SqlTokenKind {
    Word,
    Quoted,
    /// A string literal of any form.
    Text,
    Dot,
    Semicolon,
    Open,
    Close,
    Other,
}

struct Token<'a> {
    kind: SqlTokenKind,
    text: &'a str,
    start: usize,
    /// Whether its end is in the text.
    is_closed: bool,
}

impl Token<'_> {
    /// Returns the name that the token stands for.
    fn name(&self) -> Option<String> {
        match self.kind {
            SqlTokenKind::Word => Some(self.text.to_ascii_lowercase()),
            SqlTokenKind::Quoted => {
                let inner = self.text.strip_prefix('"').unwrap_or(self.text);
                Some(
                    inner
                        .strip_suffix('"')
                        .unwrap_or(inner)
                        .replace("\"\"", "\""),
                )
            }
            _ => None,
        }
    }

    /// Returns the content of a literal; escapes other than doubled quotes stay.
    fn literal(&self) -> String {
        let inner = match self.text.strip_prefix('$') {
            Some(rest) => rest.split_once('$').map_or("", |(tag, body)| {
                let end = format!("${tag}$");
                body.strip_suffix(end.as_str()).unwrap_or(body)
            }),
            None => {
                let from = self.text.find('\'').map_or(0, |at| at + 1);
                let inner = self.text.get(from..).unwrap_or_default();
                inner.strip_suffix('\'').unwrap_or(inner)
            }
        };
        inner.replace("''", "'")
    }
}

struct Tokens<'a> {
    text: &'a str,
    at: usize,
    open_comment: bool,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        let (at, open_comment) = (0, false);
        Self {
            text,
            at,
            open_comment,
        }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            if rest.starts_with("--") {
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else if rest.starts_with("/*") {
                let end = block_comment(rest);
                self.open_comment = end.is_none();
                self.at += end.unwrap_or(rest.len());
            } else {
                let blank = rest.len() - rest.trim_start().len();
                if blank == 0 {
                    return;
                }
                self.at += blank;
            }
        }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.skip_blanks();
        let rest = self.rest();
        let first = rest.chars().next()?;
        let (kind, end) = match first {
            '"' => (SqlTokenKind::Quoted, quoted(rest, 1, '"', false)),
            '\'' => (SqlTokenKind::Text, quoted(rest, 1, '\'', false)),
            '$' => match dollar_tag(rest) {
                Some(tag) => {
                    let body = rest.get(tag.len()..).unwrap_or_default();
                    let end = body.find(tag).map(|at| at + 2 * tag.len());
                    (SqlTokenKind::Text, end)
                }
                // `$user` in a search path is a name; `$1` is not.
                None => {
                    let length = 1 + word(rest.get(1..).unwrap_or_default());
                    let digits = rest
                        .get(1..length)
                        .is_some_and(|t| t.bytes().all(|b| b.is_ascii_digit()));
                    (
                        if digits {
                            SqlTokenKind::Other
                        } else {
                            SqlTokenKind::Word
                        },
                        Some(length),
                    )
                }
            },
            '.' => (SqlTokenKind::Dot, Some(1)),
            ';' => (SqlTokenKind::Semicolon, Some(1)),
            '(' | '[' => (SqlTokenKind::Open, Some(1)),
            ')' | ']' => (SqlTokenKind::Close, Some(1)),
            c if c.is_ascii_digit() => {
                let number =
                    rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '_');
                (SqlTokenKind::Other, Some(number.unwrap_or(rest.len())))
            }
            c if is_word(c) => {
                let length = word(rest);
                let prefix = rest.get(..length).unwrap_or_default();
                let escapes = prefix.eq_ignore_ascii_case("e");
                let literal = ["e", "b", "x", "n"]
                    .iter()
                    .any(|p| prefix.eq_ignore_ascii_case(p));
                if literal && rest.get(length..).is_some_and(|r| r.starts_with('\'')) {
                    (SqlTokenKind::Text, quoted(rest, length + 1, '\'', escapes))
                } else {
                    (SqlTokenKind::Word, Some(length))
                }
            }
            c => (SqlTokenKind::Other, Some(c.len_utf8())),
        };
        let length = end.unwrap_or(rest.len());
        let token = Token {
            kind,
            text: rest.get(..length).unwrap_or_default(),
            start: self.at,
            is_closed: end.is_some(),
        };
        self.at += length;
        Some(token)
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

fn word(text: &str) -> usize {
    text.find(|c: char| !is_word(c)).unwrap_or(text.len())
}

/// Returns the end of a quoted text whose content begins at `from`; doubled quotes are part of it.
fn quoted(text: &str, from: usize, quote: char, escapes: bool) -> Option<usize> {
    let mut chars = text.get(from..)?.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if escapes && c == '\\' {
            chars.next();
        } else if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return Some(from + at + 1);
        }
    }
    None
}

/// Returns `$$` or `$tag$` at the beginning of a text.
fn dollar_tag(text: &str) -> Option<&str> {
    let end = text.get(1..)?.find('$')? + 2;
    let name = text.get(1..end - 1)?;
    let first_is_digit = name.starts_with(|c: char| c.is_ascii_digit());
    let plain = name.chars().all(|c| is_word(c) && c != '$');
    (plain && !first_is_digit)
        .then(|| text.get(..end))
        .flatten()
}

/// Returns the length of a block comment; block comments nest.
fn block_comment(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_where_the_server_would_end_them() {
        let body = "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END";
        for one in [
            "SELECT ';', $$;$$, $a$ $$ ; $a$, E'\\';', \"a;b\"",
            "SELECT 1 /* ; /* ; */ ; */",
            "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
            body,
            "SELECT $1",
            "SELECT 'é;'",
        ] {
            let two = format!(" {one} ;; SELECT 2;");
            assert_eq!(statements(&two).complete, [one, "SELECT 2"]);
            assert_eq!(statements(&two).rest, "");
        }
        for open in [
            "SELECT '; ",
            "SELECT \";",
            "SELECT $$;",
            "SELECT (;",
            "/* ;",
            "SELECT 1",
        ] {
            let cut = statements(open);
            assert!(cut.complete.is_empty(), "{open}");
            assert_eq!(cut.rest, open.trim());
        }
        assert_eq!(statements(" -- nothing;\n ; ").rest, "");
        assert_eq!(statements("BEGIN; COMMIT;").complete, ["BEGIN", "COMMIT"]);
    }

    #[test]
    fn the_name_at_a_position_is_read_as_the_server_reads_it() {
        let at = |text: &str, part: &str| {
            let bytes = text.find(part).unwrap();
            reference_at(
                text,
                u32::try_from(text[..bytes].chars().count()).unwrap() + 1,
            )
        };
        let qualified = |schema: &str, table: &str| TableReference::Qualified {
            schema: schema.to_owned(),
            table: table.to_owned(),
        };
        assert_eq!(
            at("SELECT * FROM Sales.orders o", "Sales"),
            qualified("sales", "orders")
        );
        assert_eq!(
            at("SELECT 'é' FROM \"a.\"\"B\" . t", "\"a"),
            qualified("a.\"B", "t")
        );
        assert_eq!(
            at("SELECT * FROM db.sales.orders", "db"),
            qualified("sales", "orders")
        );
        assert_eq!(
            at("SELECT * FROM orders, a.b", "orders"),
            TableReference::Bare("orders".to_owned())
        );
        assert_eq!(
            at("SELECT 'sales.orders'::regclass", "'"),
            qualified("sales", "orders")
        );
        assert_eq!(reference_at("SELECT 1", 900), TableReference::Nothing);
    }

    #[test]
    fn qualifiers_are_found_wherever_they_stand() {
        assert_eq!(
            qualifiers("SELECT a.b FROM \"C c\".t, f('d.e', $$ SELECT 1 FROM g.h $$) -- i.j"),
            ["C c", "a", "d", "g"]
        );
    }

    #[test]
    fn names_of_tables_that_are_not_ascii_are_found() {
        for (text, schemas, has_bare) in [
            (
                "SELECT '名'.x, a.b FROM c.\"名前\", d.größe, é.f, \"名\"",
                &["c", "d"][..],
                false,
            ),
            ("SELECT x AS \"名\", '名' FROM t", &[], false),
            ("SELECT \"名\" from \"名前\"", &[], true),
            ("SELECT 1 FROM a.é JOIN größe ON true", &["a"], true),
            ("INSERT INTO é VALUES (1)", &[], true),
        ] {
            let found = non_ascii_tables(text);
            let found_schemas: Vec<&str> = found.schemas.iter().map(String::as_str).collect();
            assert_eq!(
                (&found_schemas[..], found.has_bare),
                (schemas, has_bare),
                "{text}"
            );
        }
    }

    #[test]
    fn what_may_commit_midway_is_not_repeatable() {
        for (text, expected) in [
            ("SELECT 1", true),
            ("-- CALL\nINSERT INTO t VALUES (1);", true),
            ("CALL p()", false),
            (" do $$ BEGIN COMMIT; END $$", false),
            ("INSERT INTO t VALUES (1); COMMIT; SELECT x", false),
        ] {
            assert_eq!(is_repeatable(text), expected, "{text}");
        }
    }

    #[test]
    fn a_search_path_is_read_as_it_is_shown() {
        assert_eq!(
            path_names("\"$user\", public, \"My \"\"x\"\", y\"", "me"),
            ["me", "public", "My \"x\", y"]
        );
        assert!(path_names("\"\"", "me").iter().all(String::is_empty));
    }
}
