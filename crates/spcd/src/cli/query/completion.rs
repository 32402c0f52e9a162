//! Completion in the shell.

use rustyline::completion::{Completer, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};
use spcd_client::Client;

use super::meta;

/// Completes names of connections, tables and columns, and commands.
#[derive(Default)]
pub(super) struct Completions {
    words: Vec<String>,
    /// Id of the last event when the names were read.
    event: Option<i64>,
}

impl Completions {
    /// Reads the names again if a connection has changed.
    pub(super) async fn refresh(&mut self, client: &mut Client) {
        let Ok(session) = client.session().await else {
            return;
        };
        let sql = "SELECT pg_catalog.max(id) FROM spcd.connection_event";
        let event = match session.query_one(sql, &[]).await {
            Ok(row) => row.try_get(0).ok().flatten(),
            Err(_) => None,
        };
        if event.is_some() && event == self.event {
            return;
        }
        let sql = format!(
            "SELECT DISTINCT pg_catalog.unnest(ARRAY[pg_catalog.quote_ident(table_schema),
                       pg_catalog.quote_ident(table_schema) || '.' || pg_catalog.quote_ident(table_name),
                       pg_catalog.quote_ident(table_name), pg_catalog.quote_ident(column_name)])
                   FROM information_schema.columns
                   WHERE table_schema NOT IN {}
                   ORDER BY 1 LIMIT 100000",
            meta::INTERNAL_SCHEMAS
        );
        if let Ok(rows) = session.query(&sql, &[]).await {
            self.words = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
            self.event = event;
        }
    }

    /// Returns the start of the word before the cursor, and its completions.
    fn matching(&self, line: &str, at: usize) -> (usize, Vec<String>) {
        let before = line.get(..at).unwrap_or_default();
        let start = before
            .rfind([' ', ',', '(', ')', '=', '\n'])
            .map_or(0, |at| at + 1);
        let part = before.get(start..).unwrap_or_default();
        let commands = meta::COMMANDS.iter().map(|command| (*command).to_owned());
        let found = (self.words.iter().cloned())
            .chain(commands.filter(|_| start == 0))
            .filter(|word| !part.is_empty() && word.starts_with(part))
            .take(200)
            .collect();
        (start, found)
    }
}

impl Helper for Completions {}

impl Highlighter for Completions {}

impl Validator for Completions {}

impl Hinter for Completions {
    type Hint = String;
}

impl Completer for Completions {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, words) = self.matching(line, at);
        let pair = |word: String| Pair {
            display: word.clone(),
            replacement: word,
        };
        Ok((start, words.into_iter().map(pair).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::Completions;

    #[test]
    fn words_continue_what_stands_before_the_cursor() {
        let words = ["sales", "sales.orders", "stock"]
            .map(str::to_owned)
            .to_vec();
        let words = Completions { words, event: None };
        let line = "SELECT * FROM sales.o WHERE";
        assert_eq!(
            words.matching(line, 21),
            (14, vec!["sales.orders".to_owned()])
        );
        assert_eq!(words.matching(".ta", 3), (0, vec![".tables".to_owned()]));
        assert_eq!(words.matching("SELECT ", 7).1, Vec::<String>::new());
    }
}
