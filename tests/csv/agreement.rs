//! What is told of a file, against what the server makes of it: many small files of odd texts.

use std::fs;

use spcd_core::config::CsvSettings;
use spcd_core::csv::{CsvColumn, CsvError, CsvLayout, foreign_table, infer_layout};
use spcd_core::diff::InferredType;
use spcd_core::sql;

use crate::support::{connect, fresh_dir, shared};

/// What the texts are made of.
const PIECES: [&str; 22] = [
    "a",
    "b",
    "1",
    "-",
    "0",
    ".",
    "5",
    "e",
    "true",
    "2024-02-29",
    " ",
    "é",
    "\u{feff}",
    "#",
    ",",
    ",",
    "\"",
    "\"\"",
    "\n",
    "\n",
    "\r\n",
    "\\.",
];

/// The same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        // Knuth's constants.
        self.0 = (self.0.wrapping_mul(6_364_136_223_846_793_005))
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_of_a_file_is_what_the_server_reads() {
    let hub = shared().database().await;
    let client = connect(&hub.url).await.unwrap();
    let schema = "CREATE EXTENSION file_fdw; CREATE SERVER s FOREIGN DATA WRAPPER file_fdw";
    client.batch_execute(schema).await.unwrap();
    let dir = fresh_dir("agreement");
    let mut numbers = Numbers(7);
    let (mut readable, mut refused) = (0, 0);
    for n in 0..600 {
        let end = if numbers.below(4) == 0 { "\r" } else { "\n" };
        let mut text = String::new();
        for _ in 0..numbers.below(14) {
            let piece = PIECES[numbers.below(PIECES.len())];
            text.push_str(if piece == "\n" { end } else { piece });
        }
        let csv = CsvSettings {
            header: [None, Some(true), Some(false)][numbers.below(3)],
            ..CsvSettings::default()
        };
        let path = dir.join(format!("{n}.csv"));
        fs::write(&path, &text).unwrap();
        let (sheet, is_fine) = match infer_layout(text.as_bytes(), true, &csv) {
            Ok(sheet) => (sheet, true),
            // Where quotes may be signs like any other the server is not asked: it joins rows.
            Err(CsvError::Ragged { .. }) if text.contains('"') => continue,
            Err(CsvError::Ragged { expected, .. }) => (texts(expected), false),
            Err(CsvError::LineEnds { .. } | CsvError::OpenQuote { .. }) => (texts(1), false),
            Err(_) => continue,
        };
        let mut make = String::new();
        let name = format!("t{n}");
        let table = foreign_table(&name, path.to_str().unwrap(), &sheet, &csv);
        sql::create_table("public", "s", &table, &mut make);
        client.batch_execute(&make).await.unwrap();
        let all = format!("SELECT count(t::text) FROM public.{name} t");
        let answer = client.query_one(&all, &[]).await;
        let told = answer.as_ref().err().and_then(|error| error.as_db_error());
        assert_eq!(
            answer.is_ok(),
            is_fine,
            "{text:?} {csv:?} {sheet:?} {told:?}"
        );
        if is_fine {
            readable += 1;
        } else {
            refused += 1;
        }
    }
    // Neither side is a matter of a few.
    assert!(readable > 100 && refused > 100, "{readable} {refused}");
}

/// So many columns that take any value, also those of a header, which the server else only skips.
fn texts(count: usize) -> CsvLayout {
    CsvLayout {
        columns: (0..count).map(text).collect(),
        header: false,
        separator: ',',
        quote: None,
    }
}

fn text(n: usize) -> CsvColumn {
    CsvColumn {
        name: format!("c{n}"),
        data_type: "text",
        inferred: InferredType {
            accepted_by: &["text"],
            is_certain: true,
        },
    }
}
