//! Any bytes as a CSV file, whole or its beginning: no panic, and columns that a table can have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spcd_core::csv::{CsvSettings, foreign_table, infer_layout, table_name};

fuzz_target!(|input: (&[u8], Option<bool>, bool, bool)| {
    let (bytes, header, tabs, comments) = input;
    let csv = CsvSettings {
        header,
        separator: tabs.then_some('\t'),
        comment: comments.then_some('#'),
        ..CsvSettings::default()
    };
    for whole in [true, false] {
        let Ok(layout) = infer_layout(bytes, whole, &csv) else { continue };
        assert!((1..=1600).contains(&layout.columns.len()));
        let mut names: Vec<&str> = layout.columns.iter().map(|column| column.name.as_str()).collect();
        assert!(names.iter().all(|name| (1..=63).contains(&name.len()) && !name.contains('\0')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), layout.columns.len());
        assert!(whole || layout.columns.iter().all(|column| column.data_type == "text"));
        foreign_table("t", "/t.csv", &layout, &csv);
    }
    if let Ok(name) = std::str::from_utf8(bytes) {
        let _ = table_name(name);
    }
});
