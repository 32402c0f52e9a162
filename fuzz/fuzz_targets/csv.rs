//! Any bytes as a CSV file, whole or its beginning: no panic, and columns that a table can have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spcd_core::config::Csv;
use spcd_core::csv::{read, table, table_name};

fuzz_target!(|input: (&[u8], Option<bool>, bool, bool)| {
    let (bytes, header, tabs, comments) = input;
    let csv = Csv {
        header,
        separator: tabs.then_some('\t'),
        comment: comments.then_some('#'),
        ..Csv::default()
    };
    for whole in [true, false] {
        let Ok(sheet) = read(bytes, whole, &csv) else { continue };
        assert!((1..=1600).contains(&sheet.columns.len()));
        let mut names: Vec<&str> = sheet.columns.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.iter().all(|name| (1..=63).contains(&name.len()) && !name.contains('\0')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), sheet.columns.len());
        assert!(whole || sheet.columns.iter().all(|(_, data_type)| *data_type == "text"));
        table("t", "/t.csv", &sheet, &csv);
    }
    if let Ok(name) = std::str::from_utf8(bytes) {
        let _ = table_name(name);
    }
});
