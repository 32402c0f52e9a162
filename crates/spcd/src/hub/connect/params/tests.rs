//! libpq's parameters.

use super::*;

fn params(pairs: &[(&str, &str)]) -> Params {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn urls_mean_what_libpq_reads() {
    for (url, expected) in [
        ("postgres://", &[][..]),
        ("postgresql://localhost", &[("host", "localhost")]),
        (
            "postgres://localhost:5433/mydb",
            &[("host", "localhost"), ("port", "5433"), ("dbname", "mydb")],
        ),
        (
            "postgres://u:p%40ss%3a@h/d",
            &[
                ("user", "u"),
                ("password", "p@ss:"),
                ("host", "h"),
                ("dbname", "d"),
            ],
        ),
        (
            "postgres://a:1,b,[::1]:3/d",
            &[("host", "a,b,::1"), ("port", "1,,3"), ("dbname", "d")],
        ),
        (
            "postgres:///d?host=/run/pg&port=7",
            &[("dbname", "d"), ("host", "/run/pg"), ("port", "7")],
        ),
        (
            "postgres://%2Frun%2Fpg/d",
            &[("host", "/run/pg"), ("dbname", "d")],
        ),
        (
            "postgres://h/?ssl=true",
            &[("host", "h"), ("sslmode", "require")],
        ),
        (
            "postgres://h?sslmode=verify-full",
            &[("host", "h"), ("sslmode", "verify-full")],
        ),
        ("mydb", &[("dbname", "mydb")]),
        ("host = h dbname=d", &[("host", "h"), ("dbname", "d")]),
        (
            r"user='a b\'c' password=x\ y port=1",
            &[("user", "a b'c"), ("password", "x y"), ("port", "1")],
        ),
    ] {
        assert_eq!(parse(url).unwrap(), params(expected), "{url}");
    }
}

#[test]
fn errors_name_the_place_and_never_a_value() {
    for (text, says) in [
        ("postgres://u:hunter2@x@h/d", "%40"),
        ("postgres://u:hunter2%zz@h/d", "password"),
        ("postgres://h/d?password", "without a value"),
        ("postgres://u:x/hunter2@h/d", "%2F"),
        ("postgres://u:x?hunter2=1@h/d", "%3F"),
        ("postgres://::1/d", "brackets"),
        ("postgres://[::1/d", "without its ]"),
        ("password=hunter2 hunter2", "quotes"),
        ("password='hunter2", "closing quote"),
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
    let around = Surroundings {
        var: &var,
        home: Some(home.path().to_owned()),
    };
    let found = complete(parse("service=prod user=text").unwrap(), &around).unwrap();
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
    let error = complete(parse("service=nowhere").unwrap(), &around).unwrap_err();
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
