use super::*;

fn auto() -> CsvSettings {
    CsvSettings::default()
}

fn with_header(header: bool) -> CsvSettings {
    CsvSettings {
        header: Some(header),
        ..CsvSettings::default()
    }
}

/// The columns as `name type`, parted by commas, with a `-` before them where no row names them.
fn shown(text: impl AsRef<[u8]>, csv: &CsvSettings) -> String {
    match infer_layout(text.as_ref(), true, csv) {
        Ok(sheet) => {
            let columns: Vec<_> = (sheet.columns.iter())
                .map(|column| format!("{} {}", column.name, column.data_type))
                .collect();
            let sign = if sheet.header { "" } else { "- " };
            format!("{sign}{}", columns.join(", "))
        }
        Err(fault) => fault.to_string(),
    }
}

fn type_of(values: &[&str]) -> &'static str {
    let text = format!("x\n{}\n", values.join("\n"));
    infer_layout(text.as_bytes(), true, &with_header(true))
        .unwrap()
        .columns[0]
        .data_type
}

#[test]
fn quotes_hold_commas_newlines_and_themselves() {
    let text = "id,\"a \"\"b\"\"\",c\n1,\"x,\ny\",2024-01-31\n2,\"\"\"\",\n";
    assert_eq!(shown(text, &auto()), "id bigint, a \"b\" text, c date");
}

#[test]
fn line_ends_of_all_kinds_but_one_kind_a_file() {
    for text in ["a,b\r\n1,2\r\n", "a,b\r1,2\r", "a,b\n1,2"] {
        assert_eq!(shown(text, &auto()), "a bigint, b bigint", "{text:?}");
    }
    assert_eq!(
        shown("a,b\n1,2\r\n", &auto()),
        "line 2 ends in CRLF and those before in LF: use one line end in the whole file, or quote the value"
    );
    assert!(shown("a,b\r\n1,2\n", &auto()).starts_with("line 2 ends in LF"));
    assert!(shown("a,b\r1,2\r\n", &auto()).starts_with("line 3 ends in LF"));
    assert_eq!(shown("a,b\n\"1\r\n\",2\n", &auto()), "a text, b bigint");
}

#[test]
fn the_mark_of_utf_8_is_no_part_of_a_header() {
    assert_eq!(shown("\u{feff}id,n\n1,2\n", &auto()), "id bigint, n bigint");
    assert_eq!(
        shown("\u{feff}\"id\",n\n1,2\n", &auto()),
        "id bigint, n bigint"
    );
    // Without a header it is part of the first value: so the server has it.
    assert_eq!(
        shown("\u{feff}1,2\n3,4\n", &with_header(false)),
        "- a text, b bigint"
    );
    assert!(shown("\u{feff}", &auto()).starts_with("it is empty"));
}

#[test]
fn a_first_row_is_a_header_if_it_can_be_one() {
    assert_eq!(
        shown("name,town\nAda,Rome\n", &auto()),
        "name text, town text"
    );
    for data in [
        "1,x\n",
        "a,a\n",
        "a,\n",
        "2024-01-01,x\n",
        "true,x\n",
        "-1.5,x\n",
    ] {
        assert!(shown(data, &auto()).starts_with("- "), "{data:?}");
    }
    assert_eq!(shown("1,x\n", &with_header(true)), "1 text, x text");
    assert_eq!(shown("n,x\n", &with_header(false)), "- a text, b text");
    assert_eq!(shown("name\n", &auto()), "name text");
}

#[test]
fn every_column_gets_a_name_of_its_own() {
    let on = with_header(true);
    assert_eq!(
        shown("a,a,,a_2,b,ctid\n", &on),
        "a text, a_3 text, c text, a_2 text, b text, ctid_2 text"
    );
    assert_eq!(shown(",a\n", &on), "a_2 text, a text");
    let long = "é".repeat(40);
    let names = infer_layout(format!("{long},{long}\n").as_bytes(), true, &on)
        .unwrap()
        .columns;
    assert_eq!(names[0].name, "é".repeat(31));
    assert_eq!(names[1].name, format!("{}_2", "é".repeat(30)));
    let wide = infer_layout(",".repeat(702).as_bytes(), true, &auto())
        .unwrap()
        .columns;
    let picked: Vec<_> = [0, 25, 26, 701, 702].map(|n| wide[n].name.clone()).into();
    assert_eq!(picked, ["a", "z", "aa", "zz", "aaa"]);
    assert_eq!(
        shown("größe,名前\n1,x\n", &auto()),
        "größe bigint, 名前 text"
    );
}

#[test]
fn a_type_is_borne_out_by_every_value() {
    for (expected, values) in [
        ("bigint", &["0", "-5", "9223372036854775807", ""][..]),
        (
            "numeric",
            &["1", "2.50", "9223372036854775808", "1.5e-7", "2e+3"],
        ),
        ("boolean", &["true", "FALSE", "False"]),
        ("date", &["2024-02-29", "0001-01-01"]),
        (
            "timestamp without time zone",
            &["2024-01-01 10:20", "2024-01-01T10:20:30.123456"],
        ),
        (
            "timestamp without time zone",
            &["2024-01-01", "2024-01-01 00:00:00"],
        ),
        (
            "timestamp with time zone",
            &["2024-01-01T10:20:30Z", "2024-01-01 10:20:30+05:30"],
        ),
        (
            "timestamp with time zone",
            &["2024-01-01T10:20:30+0200", "2024-01-01 10:20:30-08"],
        ),
        ("text", &["", ""]),
        ("text", &["1", "x"]),
        ("text", &["1", "\"\""]),
        ("text", &["2024-01-01 10:20", "2024-01-01T10:20Z"]),
        ("text", &["true", "1"]),
    ] {
        assert_eq!(type_of(values), expected, "{values:?}");
    }
    for text in [
        "007",
        "+49",
        "-0",
        "1.",
        ".5",
        "1e5",
        " 1",
        "0x1f",
        "NaN",
        "1.0e9999",
        "2023-02-29",
        "2024-13-01",
        "0000-01-01",
        "31.01.2024",
        "24-01-01",
        "2024-01-01 24:00",
        "2024-01-01 10:20:30.1234567",
        "2024-01-01 10",
        "2024-01-01T10:20+16:00",
        "t",
        "yes",
        "-",
    ] {
        assert_eq!(type_of(&[text]), "text", "{text}");
    }
    assert_eq!(type_of(&["\"1\"", "2"]), "bigint");
}

#[test]
fn what_the_server_would_refuse_to_read_is_told_with_its_line() {
    for (text, expected) in [
        ("", "it is empty: the first row defines the columns"),
        (
            "a,b\n1,2\n3\n",
            "line 3 has 1 value where the first line has 2",
        ),
        (
            "a,b\n\"1\n\",2\n3,4,5\n",
            "line 4 has 3 values where the first line has 2",
        ),
        (
            "a,b\n\n1,2\n",
            "line 2 is blank where the server expects 2 values",
        ),
        ("a,b\n1,\"x\n2,3\n", "the quote on line 2 is never closed"),
        (
            "a,b\n\\.\n1,2\n",
            "line 2 is `\\.`, at which the server stops reading: take it out, or quote it",
        ),
        (
            "a\n\0\n",
            "line 2 contains a NUL byte, which Postgres cannot store: is it a binary file?",
        ),
    ] {
        assert_eq!(shown(text, &auto()), expected, "{text:?}");
    }
    assert_eq!(
        shown(b"a\nb\n\xe4\n", &auto()),
        "line 3 is not UTF-8; save it as UTF-8, or say how it is encoded: `encoding = \"latin1\"`"
    );
    assert_eq!(
        shown(b"\xff\xfea\0", &auto()),
        "it is UTF-16; save it as UTF-8"
    );
    assert_eq!(
        shown(",".repeat(1600), &auto()),
        "it has 1601 columns; a table has at most 1600"
    );
    // A blank line is a row of one value, NULL.
    assert_eq!(shown("a\n\n1\n", &auto()), "a bigint");
}

#[test]
fn comments_are_told_where_they_are_asked_for() {
    let csv = CsvSettings {
        comment: Some('#'),
        ..CsvSettings::default()
    };
    for (text, line) in [("# x\na,b\n", 1), ("a,b\n1,2\n#3,4\n", 3)] {
        let expected = format!("line {line} begins with the comment sign `#`");
        assert!(shown(text, &csv).starts_with(&expected), "{text:?}");
    }
    // Not if the character is in quotes or in the middle, nor without the setting.
    assert_eq!(shown("a,b\n\"#1\",#2\n", &csv), "a text, b text");
    assert_eq!(shown("a,b\n#1,2\n", &auto()), "a text, b bigint");
}

#[test]
fn separators_are_what_the_connection_says() {
    let csv = CsvSettings {
        separator: Some('\t'),
        ..CsvSettings::default()
    };
    assert_eq!(shown("a\tb\n1,5\t2\n", &csv), "a text, b bigint");
    let sheet = infer_layout(b"a\tb\n", true, &csv).unwrap();
    let table = foreign_table("t", "/x/t.csv", &sheet, &csv);
    let options: Vec<_> = table
        .options
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(
        options,
        [
            "delimiter=\t",
            "encoding=UTF8",
            "filename=/x/t.csv",
            "format=csv",
            "header=true"
        ]
    );
}

#[test]
fn of_the_beginning_of_a_file_only_names_are_told() {
    let part = |text: &[u8]| infer_layout(text, false, &auto());
    let columns = part(b"a,b\n1,2\n3,\"4").unwrap().columns;
    let shown = columns
        .iter()
        .map(|column| (&*column.name, column.data_type));
    assert_eq!(shown.collect::<Vec<_>>(), [("a", "text"), ("b", "text")]);
    // Neither a row nor a character that is cut off is held against the file.
    assert!(part(b"a,b\n1").is_ok());
    assert!(part(b"a,b\n1,\xc3").is_ok());
    assert!(part(b"a,b\n1,2\r").is_ok());
    assert_eq!(part(b"a,b"), Err(CsvError::EndlessLine));
    assert_eq!(part(b"a,b\n1,\xc3x"), Err(CsvError::NotUtf8 { line: 2 }));
    assert!(matches!(
        part(b"a,b\n1\n2,3\n"),
        Err(CsvError::Ragged { line: 2, .. })
    ));
}

#[test]
fn tables_are_named_after_files() {
    for (file, name) in [
        ("orders.csv", "orders"),
        ("Orders 2024.q1.csv", "Orders 2024.q1"),
        ("plain", "plain"),
        (".csv", ".csv"),
    ] {
        assert_eq!(table_name(file), Ok(name));
    }
    assert_eq!(table_name(&"x".repeat(68)), Err(CsvError::LongName));
}

#[test]
fn separators_are_found_where_the_connection_says_none() {
    let separator =
        |text: &str| infer_layout(text.as_bytes(), true, &auto()).map(|sheet| sheet.separator);
    for (text, expected) in [
        ("a,b\n1,2\n", ','),
        ("a;b\n1;9,50\n", ';'),
        ("a\tb;c\n1\t2\n", '\t'),
        ("\"x, y\";b\n1;2\n", ';'),
        // The comma comes first where it fits, and where nothing else does.
        ("a;b,c\n1;2,3\n", ','),
        ("last, first;age\nDoe, Ada;36\nmadonna;60\n", ';'),
        ("name\nx;y\n", ','),
        ("#,x;y\n1,5;2\n", ','),
    ] {
        assert_eq!(separator(text), Ok(expected), "{text:?}");
    }
    // The error is that of the separator that occurs in the first row.
    assert_eq!(
        shown("a;b\n1;2\n3\n", &auto()),
        "line 3 has 1 value where the first line has 2"
    );
}

#[test]
fn a_quote_in_the_middle_of_a_value_joins_no_rows() {
    let read = |text: &str| {
        let sheet = infer_layout(text.as_bytes(), true, &auto());
        sheet.map(|sheet| (shown(text, &auto()), sheet.quote.is_some()))
    };
    // No value is in quotes, so quotes are signs like any other.
    let plain = |columns: &str| Ok((columns.to_owned(), true));
    assert_eq!(
        read("id,what\n1,27\" wide\n2,30\" deep\n3,x\n"),
        plain("id bigint, what text")
    );
    assert_eq!(read("a,b\nx\"1,\n2\",3\n"), plain("a text, b bigint"));
    // Some are: there is no telling which quotes mean what.
    let stray = |line| Err(CsvError::StrayQuote { line });
    assert_eq!(read("id,what\n1,\"a, b\"\n2,27\" wide\n3,x\n"), stray(3));
    assert_eq!(read("id,what\n1,\"27\" wide\"\n2,x\n"), stray(2));
    // Blanks may stand before a quote.
    let quoted = Ok(("a text, b bigint".to_owned(), false));
    assert_eq!(read("a,b\n \"x, y\",2\n"), quoted);
    // Of a part it is not known what comes later.
    let part = super::infer_layout(b"a,b\n1\",2\n", false, &auto());
    assert_eq!(part, Err(CsvError::StrayQuote { line: 2 }));
}

#[test]
fn null_is_what_the_connection_says() {
    let csv = CsvSettings {
        null: Some("NA".into()),
        ..CsvSettings::default()
    };
    assert_eq!(shown("n,m\n1,2\nNA,NA\n", &csv), "n bigint, m bigint");
    // In quotes it is a text, and nothing between separators is an empty one.
    assert_eq!(shown("n,m\n1,2\n\"NA\",\n", &csv), "n text, m text");
}
