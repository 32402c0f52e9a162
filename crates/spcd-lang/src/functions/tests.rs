//! Functions as Terraform documents them, and their bounds.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends by panicking"
)]

use super::ValueFunction;
use crate::evaluate::Function;
use crate::outline::outline;
use crate::syntax::Span;
use crate::value::Value;

/// Evaluates an expression; the error is the message of its problem.
fn evaluate(expression: &str) -> Result<Value, String> {
    let text = format!("a \"b\" {{\n  x = {expression}\n}}\n");
    let parsed = crate::parse::parse(&text);
    assert!(
        parsed.problems.is_empty(),
        "{expression}: {:?}",
        parsed.problems
    );
    let block = parsed.block.unwrap();
    let mut lookup = |_: Function, argument: &str| Ok(argument.repeat(1 << 20));
    crate::evaluate::evaluate(&block.body.attributes[0].value, &mut lookup).map_err(|error| {
        match error {
            crate::evaluate::EvaluationError::Problem(problem) => problem.message,
            crate::evaluate::EvaluationError::Reported => "reported".to_owned(),
        }
    })
}

#[track_caller]
fn same(expression: &str, expected: &str) {
    let (is, should) = (evaluate(expression), evaluate(expected));
    assert!(should.is_ok(), "{expected}: {should:?}");
    let hcl = |value: &Result<Value, String>| match value {
        Ok(value) => {
            let mut text = String::new();
            value.write_hcl(&mut text, 0);
            text
        }
        Err(message) => format!("error: {message}"),
    };
    assert_eq!(hcl(&is), hcl(&should), "{expression}");
}

#[track_caller]
fn refused(expression: &str, message: &str) {
    match evaluate(expression) {
        Err(is) => assert!(is.contains(message), "{expression}: {is}"),
        Ok(_) => panic!("{expression} has a value"),
    }
}

#[test]
fn texts_are_computed_as_in_terraform() {
    same("lower(\"ÀB\")", "\"àb\"");
    same("upper(true)", "\"TRUE\"");
    same("replace(\"abc\", \"\", \"-\")", "\"-a-b-c-\"");
    same("replace(\"a/b/c\", \"/\", \"\")", "\"abc\"");
    same("split(\"\", \"aé\")", "[\"a\", \"é\"]");
    same("split(\",\", \"\")", "[\"\"]");
    same("join(\",\", [], [\"\", \"a\"])", "\",a\"");
    same("base64decode(\"w6k=\")", "\"é\"");
    same("base64decode(\"YWJj\\nZGVm\")", "\"abcdef\"");
    same("base64decode(\"\")", "\"\"");
    refused("lower(null)", "found null");
    refused("join(\",\", [[1]])", "takes lists of texts here");
    for wrong in ["YQ", "YQ=", "=", "Y===", "YQ==YQ==x", "Y-_="] {
        refused(&format!("base64decode(\"{wrong}\")"), "not base64");
    }
    refused("base64decode(\"/w==\")", "not UTF-8");
}

#[test]
fn formats_are_those_of_terraform() {
    for (call, expected) in [
        ("\"%%\"", "%"),
        ("\"%s %s\", \"a\", 1.5", "a 1.5"),
        ("\"%[2]s %[1]s\", \"a\", \"b\"", "b a"),
        ("\"%[2]s %[1]s %s\", \"a\", \"b\"", "b a b"),
        (
            "\"%5s|%-5s|%05s\", \"ab\", \"ab\", \"ab\"",
            "   ab|ab   |000ab",
        ),
        ("\"%.2s\", \"abc\"", "ab"),
        ("\"%+d % d %05d %-4d|\", 5, 5, -42, 7", "+5  5 -0042 7   |"),
        ("\"%d\", \"12\"", "12"),
        (
            "\"%x %X %#x %o %b %.3d\", 255, 255, 255, 8, 5, 7",
            "ff FF 0xff 10 101 007",
        ),
        (
            "\"%f %.2f %8.3f %.0f\", 1.5, 2, 3.14159, 2.5",
            "1.500000 2.00    3.142 2",
        ),
        (
            "\"%e %E %.1e\", 1500, 0.00015, 123456",
            "1.500000e+03 1.500000E-04 1.2e+05",
        ),
        (
            "\"%g %g %g %.3g\", 0.5, 1500000, 0.00001, 3.14159",
            "0.5 1.5e+06 1e-05 3.14",
        ),
        ("\"%t %t\", true, \"false\"", "true false"),
        (
            "\"%v %v %v %v\", null, 123456789012, true, \"a\"",
            "null 123456789012 true a",
        ),
        (
            "\"%v %#v %q\", { a = [1] }, \"a\", \"b\\\"\"",
            "{\"a\":[1]} \"a\" \"b\\\"\"",
        ),
        (
            "\"%f\", 170141183460469231731687303715884105727",
            "170141183460469231731687303715884105727.000000",
        ),
    ] {
        match evaluate(&format!("format({call})")) {
            Ok(Value::String(text)) => assert_eq!(&*text, expected, "{call}"),
            other => panic!("{call}: {other:?}"),
        }
    }
    for (call, message) in [
        ("\"%s\"", "there is no value 1 for `%s`"),
        ("\"%[0]s\", 1", "there is no value 0"),
        ("\"%s\", null", "does not take null"),
        ("\"%s\", [1]", "does not take a list"),
        ("\"%d\", \"a\"", "expected a number"),
        ("\"%z\", 1", "expected one of"),
        ("\"100%\"", "expected one of"),
        ("\"%1001d\", 1", "the width is at most 1000"),
        ("\"%.1001f\", 1.5", "at most 1000"),
        ("\"%99999999999999999999d\", 1", "the width is at most 1000"),
        ("\"a\", 1", "uses 0 of 1 values"),
        (
            "\"%e\", 170141183460469231731687303715884105727",
            "too large",
        ),
    ] {
        refused(&format!("format({call})"), message);
    }
}

#[test]
fn collections_are_computed_as_in_terraform() {
    same("coalesce(1, \"a\")", "\"1\"");
    same("coalesce(null, false)", "false");
    same("concat([1], [], [\"a\"])", "[1, \"a\"]");
    same("contains([1, 2], 1.0)", "true");
    same("contains([\"1\"], 1)", "false");
    same("flatten([])", "[]");
    same("flatten([null, [{ a = [1] }]])", "[null, { a = [1] }]");
    same("merge()", "{}");
    same(
        "merge(null, { a = { b = 1 } }, { a = { c = 2 } })",
        "{ a = { c = 2 } }",
    );
    same("merge([{ a = 1 }, { b = 2 }]...)", "{ a = 1, b = 2 }");
    same("lookup({ a = null }, \"a\", 1)", "null");
    same("lookup({ \"1\" = 2 }, 1)", "2");
    same("toset([3, 1, 2.0, 1])", "[1, 2, 3]");
    same("toset([1, \"1\", true])", "[\"1\", \"true\"]");
    same("toset([true, false, true])", "[false, true]");
    same("toset([[1], { a = 1 }, [1]])", "[[1], { a = 1 }]");
    refused("length(5)", "found a number");
    refused("keys([1])", "takes an object here, found a list");
    refused("flatten(\"a\")", "takes a list here, found text");
}

#[test]
fn decoders_keep_values_or_refuse_them() {
    same(
        "jsondecode(\"\\ufeff {\\\"a\\\": -1.5e1} \")",
        "{ a = -15 }",
    );
    same("jsondecode(\"\\\"\\\\u00e9\\\"\")", "\"é\"");
    same("yamldecode(\"\")", "null");
    same(
        "yamldecode(\"a: &x {b: 1}\\nc: *x\\n\")",
        "{ a = { b = 1 }, c = { b = 1 } }",
    );
    same(
        "csvdecode(\"\\ufeffa,b\\r\\n\\r\\n1,\\r\\n\\\"x\\\"\\\"\\ny\\\",2\")",
        "[{ a = \"1\", b = \"\" }, { a = \"x\\\"\\ny\", b = \"2\" }]",
    );
    same("csvdecode(\"a\\n\")", "[]");
    for (call, message) in [
        (
            "jsondecode(\"\")",
            "expected a value, found the end of the file, in line 1, column 1",
        ),
        (
            "jsondecode(\"[1,\\n 2\")",
            "expected `,` or `]`, in line 2, column 3",
        ),
        ("jsondecode(\"{} {}\")", "expected nothing after the value"),
        (
            "jsondecode(\"{\\\"a\\\": 1, \\\"a\\\": 2}\")",
            "written twice",
        ),
        ("jsondecode(\"012345\")", "leading zero"),
        ("yamldecode(\"a: 1\\na: 2\\n\")", "written twice"),
        ("yamldecode(\"a: [\")", "not YAML"),
        ("yamldecode(\"a: 1\\n---\\nb: 1\\n\")", "second document"),
        ("csvdecode(\"\")", "names is missing"),
        ("csvdecode(\"a,a\\n1,2\\n\")", "two columns"),
        ("csvdecode(\"a,b\\n1,2\\n3\")", "in line 3, column 1"),
        ("csvdecode(\"a\\n\\\"1\")", "never closed"),
        ("csvdecode(\"a\\n1\\\"\")", "begins and ends with a quote"),
        ("csvdecode(\"a\\n\\\"1\\\"x\")", "after the closing quote"),
    ] {
        refused(call, message);
    }
}

#[test]
fn try_hides_only_what_a_value_lacks() {
    same("try({}.a, [][0], \"c\", \"d\")", "\"c\"");
    same("try(jsondecode(\"{\"), {})", "{}");
    same("[for x in [{ a = 1 }, {}] : try(x.a, 0)]", "[1, 0]");
    refused("try({}.a, [][0])", "no attribute of this name");
    refused("try(nonsense, 1)", "a bare word");
    refused("try(nosuch(1), 1)", "no function of this name");
    refused("try()", "at least 1 argument");
}

#[test]
fn what_grows_is_refused_before_it_is_built() {
    let large = "env(\"x\")";
    for call in [
        format!("replace({large}, \"x\", \"{}\")", "y".repeat(1000)),
        format!("replace({large}, \"\", \"{}\")", "y".repeat(1000)),
        format!("join({large}, [1, 2, 3, 4, 5, 6, 7])"),
        format!(
            "[for v in [{large}] : format(\"{}\", v)]",
            "%[1]s".repeat(100)
        ),
        format!("[for v in [{large}] : concat([v, v], [v, v], [v])]"),
        format!("try({large}, 1) == replace({large}, \"x\", \"yyyyyyyy\")"),
        format!("[for x in split(\"\", {large}) : split(\"\", {large})]"),
        // Each row repeats the names of the columns.
        format!(
            "csvdecode(\"{}\\n{}\")",
            ["c"; 2]
                .iter()
                .enumerate()
                .map(|(n, c)| format!("{c}{}{n}", "n".repeat(1000)))
                .collect::<Vec<_>>()
                .join(","),
            "1,2\\n".repeat(10_000)
        ),
    ] {
        refused(&call, "this value grows too large");
    }
    // A long text of which little is written, and one that is only looked up.
    let short = "%.1[1]s".repeat(100);
    refused(
        &format!("[for v in [{large}] : format(\"{short}\", v)]"),
        "this value grows too large",
    );
    let looked_up = "lookup(o, k), ".repeat(10);
    refused(
        &format!("[for o in [{{ ({large}) = 1 }}] : [for k in keys(o) : [{looked_up}]]]"),
        "this value grows too large",
    );
    // A million objects take half a gigabyte.
    let hundred = format!("split(\"\", \"{}\")", "x".repeat(100));
    for object in ["{}", "{for x in [] : x => x}"] {
        refused(
            &format!(
                "[for x in {hundred} : [for x in {hundred} : [for x in {hundred} : {object}]]]"
            ),
            "this value grows too large",
        );
    }
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    refused(&format!("jsondecode(\"{deep}\")"), "levels deep");
    refused(&format!("yamldecode(\"{deep}\")"), "levels deep");
    let deep = format!("{}{}", "[".repeat(60), "]".repeat(60));
    refused(
        &format!("[[[[[[jsondecode(\"{deep}\")]]]]]]"),
        "64 levels deep",
    );
    // Aliases of aliases: each line is ten times the one before.
    let bomb: String = (1..9)
        .map(|n| format!("a{n}: &a{n} [{}]\\n", format!("*a{}, ", n - 1).repeat(10)))
        .collect();
    refused(
        &format!("yamldecode(\"a0: &a0 x\\n{bomb}\")"),
        "expand to too much",
    );
}

#[test]
fn a_function_builds_no_more_than_its_limit() {
    let text = |text: &str| Value::String(text.into());
    let list = Value::List(vec![text("1"), text("2")]);
    let rows = "1,2\n".repeat(10);
    for (name, arguments) in [
        (
            "replace",
            vec![text("aaaaaaaaaa"), text("a"), text("bbbbbbbbbbb")],
        ),
        ("join", vec![text(&"-".repeat(100)), list]),
        ("format", vec![text("%100s"), text("a")]),
        ("csvdecode", vec![text(&format!("some,columns\n{rows}"))]),
    ] {
        let function = ValueFunction::named(name).unwrap();
        let span = Span::default();
        let arguments: Vec<_> = arguments.iter().map(|value| (value, span)).collect();
        assert!(function.compute(&arguments, span, 1000).is_ok(), "{name}");
        let problem = function.compute(&arguments, span, 99).unwrap_err();
        assert_eq!(
            problem
                .message
                .replace("`csvdecode`: ", "")
                .split(',')
                .next(),
            Some("this value grows too large"),
            "{name}"
        );
    }
}

#[test]
fn a_part_of_a_large_list_costs_its_own_size() {
    // Copying the list for each of its elements would exceed the limit.
    let numbers: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let text = "x".repeat(1 << 16);
    same(
        &format!(
            "[for all in [split(\"\", \"{text}\")] : [for n in [{}] : \"${{all[n]}}${{length(all)}}\"]]",
            numbers.join(", ")
        ),
        &format!("[[{}]]", "\"x65536\", ".repeat(40)),
    );
}

#[test]
fn an_outline_has_the_values_of_functions() {
    let mut lookup = |_: Function, _: &str| Err(String::new());
    let (blocks, problems) = outline("a \"b\" {\n  x = lower(\"A\")\n}\n", &mut lookup);
    assert!(problems.is_empty());
    assert_eq!(blocks[0].attributes["x"].1, Some(Value::String("a".into())));
}
