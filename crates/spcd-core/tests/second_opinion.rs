//! What our parser reads is what `hcl-rs`, which others wrote, reads in the same text.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

use spcd_lang::outline::outline;

/// A body's attributes as JSON, by both.
fn both(text: &str) -> (serde_json::Value, serde_json::Value) {
    let block = format!("x \"y\" {{\n{text}\n}}\n");
    let mut lookup = |_, _: &str| Err("none".to_owned());
    let (blocks, problems) = outline(&block, &mut lookup);
    assert!(problems.is_empty(), "{text}: {problems:?}");
    let ours: std::collections::BTreeMap<_, _> = blocks[0]
        .attributes
        .iter()
        .map(|(name, (_, value))| (name.clone(), value.clone()))
        .collect();
    let body: hcl::Body = hcl::parse(text).unwrap();
    let body = hcl::eval::Evaluate::evaluate(&body, &hcl::eval::Context::new()).unwrap();
    let theirs: serde_json::Value = hcl::from_body(body).unwrap();
    (serde_json::to_value(ours).unwrap(), theirs)
}

#[test]
fn both_read_the_same() {
    for text in [
        "a = 1",
        "a = -5\nb = 1.5\nc = true\nd = null\ne = \"x\"",
        "a = 1 + 2 * 3 - 4 / 2 % 3",
        "a = (1 + 2) * 3 == 9 && !false || false",
        "a = 10 - 3 - 2\nb = 2 > 1 != false",
        "a = \"x${1 + 1}y\"\nb = \"${[1, 2]}\"",
        "a = \"\\\"\\\\\\n\\t\\u00e9 $${x} %%{y} $ %\"",
        "a = <<E\n one\n  two\nE\nb = <<-E\n    one\n      two\n\n    three\n    E",
        "a = \"%{ if true }yes%{ else }no%{ endif }\"\nb = \"%{ for x in [1, 2] }<${x}>%{ endfor }\"",
        "a = [1, \"x\", [true]]\nb = { x = 1, \"y z\" = 2, (\"w\") : 3 }",
        "a = [\n 1,\n 2,\n]\nb = {\n x = 1\n y = 2\n}",
        "a = [for x in [1, 2, 3] : x * 2 if x > 1]\nb = {for k, v in {p = 1, q = 2} : k => v + 1}",
        "a = {for x in [\"p\", \"q\", \"p\"] : x => 1...}",
        "a = [{n = 1}, {n = 2}][*].n\nb = [{n = 1}, {n = 2}].*.n\nc = {x = [5, 6]}.x[1]\nd = [7].0",
        "a = true ? 1 : 2\nb = false ? 1 : true ? 3 : 4",
        "# comment\na = 1 // another\n/* and\none */ b = 2",
        "a = \"  ${~ 1 ~}  \"",
    ] {
        let (ours, theirs) = both(text);
        assert_eq!(ours, theirs, "{text}");
    }
}
