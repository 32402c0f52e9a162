//! libpq's parameters.

use super::*;

fn params(pairs: &[(&str, &str)]) -> Params {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn a_database_is_a_url_or_pairs_or_a_bare_name() {
    for (text, expected) in [
        ("postgres://h/d", &[("host", "h"), ("dbname", "d")][..]),
        ("host = h dbname=d", &[("host", "h"), ("dbname", "d")]),
        (" mydb ", &[("dbname", "mydb")]),
    ] {
        assert_eq!(parse(text).unwrap(), params(expected), "{text}");
    }
}

#[test]
fn errors_name_the_place_and_never_a_value() {
    for (text, says) in [
        ("postgres://u:hunter2@x@h/d", "%40"),
        ("mysql://u:hunter2@h/d", "mysql://"),
        ("hots=h", "\"hots\""),
        ("host=h sslcrl=x", "sslcrl"),
        ("host=h\0", "NUL"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn precedence_is_text_then_service_then_environment_then_defaults() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(
        home.path().join(".pg_service.conf"),
        "# ours\n[other]\nhost=wrong\n[prod]\nhost=from-service\nport=1\nuser=service\n[prod]\nhost=second\n",
    )
    .unwrap();
    std::fs::write(home.path().join(".pgpass"), "").unwrap();
    let var = |name: &str| match name {
        "PGPORT" => Some("2".to_owned()),
        "PGDATABASE" => Some("from-env".to_owned()),
        "PGUSER" => Some(String::new()),
        _ => None,
    };
    let environment = Environment {
        var: &var,
        home: Some(home.path().to_owned()),
    };
    let found = complete(parse("service=prod user=text").unwrap(), &environment).unwrap();
    let passfile = home.path().join(".pgpass").display().to_string();
    assert_eq!(
        found,
        params(&[
            ("dbname", "from-env"),
            ("host", "from-service"),
            ("passfile", &passfile),
            ("port", "1"),
            ("user", "text")
        ])
    );
    let error = complete(parse("service=nowhere").unwrap(), &environment).unwrap_err();
    assert!(
        error.contains("nowhere") && error.contains(".pg_service.conf"),
        "{error}"
    );
}

#[test]
fn the_first_matching_line_of_a_password_file_counts() {
    let text = "# h:1:d:u:comment\nbad line\nh:1:d:other:wrong\nh:*:d:u:se\\:c\\\\ret:with colon\n*:*:*:*:any\r\n";
    assert_eq!(
        passfile_lookup(text, "h", 1, "d", "u").as_deref(),
        Some("se:c\\ret:with colon")
    );
    assert_eq!(
        passfile_lookup(text, "x", 1, "d", "u").as_deref(),
        Some("any")
    );
    assert_eq!(passfile_lookup("h:1:d:u", "h", 1, "d", "u"), None);
}
