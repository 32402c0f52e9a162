//! Every sslmode, and certificates that are no good.

use std::fs;

use super::{connects, refuses};
use crate::support::authority::Authority;
use crate::support::{Spcd, query, shared};

#[test]
fn every_sslmode_means_what_libpq_means() {
    let authority = Authority::new();
    authority.signed("server", "CN=db", "subjectAltName=DNS:db.example\n", "10");
    let server = authority.server(
        "server",
        "hostnossl all plain all trust\nhostssl all secure all trust\n",
    );
    let spcd = Spcd::with_private_cluster();
    let ca = authority.path("ca.crt");
    fs::copy(&ca, spcd.dir().join("other.crt")).unwrap();
    authority.self_signed("stranger", "CN=stranger", &[]);
    let stranger = authority.path("stranger.crt");
    let url = server.url("postgres");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        query(
            &url,
            "CREATE ROLE plain SUPERUSER LOGIN; CREATE ROLE secure SUPERUSER LOGIN",
        )
        .await;
    });

    let works = |params: &str| connects(&spcd, &server, params);
    let fails = |params: &str, says: &[&str]| refuses(&spcd, &server, params, says);
    for mode in ["allow", "prefer", "require"] {
        works(&format!("user=secure host=db.example sslmode={mode}"));
    }
    for mode in ["disable", "allow", "prefer"] {
        works(&format!("user=plain host=db.example sslmode={mode}"));
    }
    fails(
        "user=secure host=db.example sslmode=disable",
        &["pg_hba.conf", "no encryption"],
    );
    fails(
        "user=plain host=db.example sslmode=require",
        &["pg_hba.conf"],
    );

    works(&format!(
        "user=secure host=db.example sslmode=verify-full sslrootcert={ca}"
    ));
    works(&format!(
        "user=secure host=other.example sslmode=verify-ca sslrootcert={ca}"
    ));
    works(&format!(
        "user=secure host=other.example sslmode=require sslrootcert={ca}"
    ));
    fails(
        &format!("user=secure host=other.example sslmode=verify-full sslrootcert={ca}"),
        &["db.example", "other.example", "verify-ca"],
    );
    for mode in ["require", "verify-ca", "verify-full"] {
        fails(
            &format!("user=secure host=db.example sslmode={mode} sslrootcert={stranger}"),
            &["does not come from a root in", "stranger.crt"],
        );
    }
    fails(
        "user=secure host=db.example sslmode=verify-full sslrootcert=system",
        &["does not come from a root in"],
    );
    fails(
        "user=secure host=db.example sslmode=verify-full",
        &["sslrootcert"],
    );
    fails(
        "user=secure host=db.example sslmode=verify-full sslrootcert=/nowhere.crt",
        &["/nowhere.crt"],
    );
    fails(
        "user=secure host=db.example sslmode=secure",
        &["verify-full"],
    );

    // What went over TLS and what did not, as the server saw it.
    let log = server.log();
    let (plain, secure): (Vec<&str>, Vec<&str>) = log
        .lines()
        .filter(|line| {
            line.contains("authorized: user=plain") || line.contains("authorized: user=secure")
        })
        .partition(|line| line.contains("user=plain"));
    assert!(
        plain.len() >= 3 && plain.iter().all(|line| !line.contains("SSL enabled")),
        "{plain:?}"
    );
    assert!(
        secure.len() >= 6 && secure.iter().all(|line| line.contains("SSL enabled")),
        "{secure:?}"
    );
}

#[test]
fn a_server_without_tls_is_no_use_where_it_is_demanded() {
    let spcd = Spcd::with_private_cluster();
    refuses(
        &spcd,
        shared(),
        "user=postgres host=localhost sslmode=require",
        &["does not speak TLS"],
    );
    connects(
        &spcd,
        shared(),
        "user=postgres host=localhost sslmode=prefer",
    );
}

#[test]
fn certificates_that_are_no_good_are_each_named_for_what_they_are() {
    let authority = Authority::new();
    let spcd = Spcd::with_private_cluster();
    let ca = authority.path("ca.crt");
    authority.signed("expired", "CN=db", "subjectAltName=DNS:db.example\n", "10");
    authority.expire("expired");
    authority.signed("version1", "CN=db.example", "", "10");
    authority.signed(
        "nameless",
        "CN=db.example",
        "basicConstraints=CA:FALSE\n",
        "10",
    );
    authority.self_signed(
        "own",
        "CN=own",
        &["-addext", "subjectAltName=DNS:db.example"],
    );
    let verify = format!("user=postgres host=db.example sslmode=verify-full sslrootcert={ca}");

    refuses(
        &spcd,
        &authority.server("expired", ""),
        &verify,
        &["expired ", " days ago; renew it"],
    );
    let version1 = authority.server("version1", "");
    refuses(&spcd, &version1, &verify, &["X.509 version 1"]);
    refuses(
        &spcd,
        &version1,
        "user=postgres host=db.example sslmode=require",
        &["X.509 version 1"],
    );
    let nameless = authority.server("nameless", "");
    refuses(
        &spcd,
        &nameless,
        &verify,
        &["does not name db.example", "common name"],
    );
    connects(
        &spcd,
        &nameless,
        &verify.replace("verify-full", "verify-ca"),
    );

    // One that is its own root, as many servers have: good if it is exactly the one that is trusted.
    let own = authority.server("own", "");
    let trusted = format!(
        "host=db.example user=postgres sslmode=verify-full sslrootcert={}",
        authority.path("own.crt")
    );
    connects(&spcd, &own, &trusted);
    refuses(
        &spcd,
        &own,
        &trusted.replace("db.example", "other.example"),
        &["other.example"],
    );
    refuses(&spcd, &own, &verify, &["its own root", "sslrootcert"]);
}
