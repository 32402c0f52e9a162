//! Splitting a text into blocks and reading each equals reading the whole, where the whole is
//! valid; and values written as HCL are read back as they were.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spcd_lang::outline::{Outline, outline};
use spcd_lang::value::Value;

fn lookup(_: spcd_lang::evaluate::Function, argument: &str) -> Result<String, String> {
    Ok(argument.to_owned())
}

/// The same blocks one line further up.
fn raised(block: &Outline) -> Outline {
    Outline {
        start_line: block.start_line - 1,
        brace_line: block.brace_line - 1,
        end_line: block.end_line - 1,
        attributes: block
            .attributes
            .iter()
            .map(|(name, (line, value))| (name.clone(), (line - 1, value.clone())))
            .collect(),
        nested: block.nested.iter().map(raised).collect(),
        ..block.clone()
    }
}

fn levels(value: &Value) -> usize {
    match value {
        Value::List(values) => 1 + values.iter().map(levels).max().unwrap_or(0),
        Value::Object(values) => 1 + values.values().map(levels).max().unwrap_or(0),
        _ => 0,
    }
}

fn written_and_read(block: &Outline) {
    for (_, value) in block.attributes.values() {
        let Some(value) = value else { continue };
        if levels(value) > 50 {
            continue;
        }
        let mut text = "x {\n  a = ".to_owned();
        value.write_hcl(&mut text, 2);
        text.push_str("\n}\n");
        let (blocks, problems) = outline(&text, &mut lookup);
        assert!(problems.is_empty(), "{text:?}: {problems:?}");
        assert_eq!(
            blocks[0].attributes["a"].1.as_ref(),
            Some(value),
            "{text:?}"
        );
    }
    block.nested.iter().for_each(written_and_read);
}

fuzz_target!(|text: &str| {
    // Read as the body of one block, nothing is split.
    let (wrapped, problems) = outline(&format!("x {{\n{text}\n}}"), &mut lookup);
    let [whole] = wrapped.as_slice() else { return };
    if !problems.is_empty() || !whole.attributes.is_empty() {
        return;
    }
    let (parts, problems) = outline(text, &mut lookup);
    assert!(problems.is_empty(), "{problems:?}");
    let whole: Vec<Outline> = whole.nested.iter().map(raised).collect();
    assert_eq!(parts, whole);
    parts.iter().for_each(written_and_read);
});
