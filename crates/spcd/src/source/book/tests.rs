//! Many sources under a clock that the test steps.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::{Source, load_plain};
use spcd_core::health::{Kind, Schedule, Turn};

use super::{Book, Room};
use crate::hub::probe::{Answer, Failure};
use crate::source::{News, Watched};

const ALL: Room = Room {
    well: true,
    lost: true,
    again: true,
    more: true,
};

fn watched(text: &str) -> Vec<Watched> {
    let source = Source {
        path: "a.spc".into(),
        text: Ok(text.into()),
    };
    let desired = load_plain(&[source]);
    let one = |connection: &Arc<_>| Watched {
        connection: Arc::clone(connection),
        schedule: Schedule::default(),
    };
    desired.connections.values().map(one).collect()
}

fn sources(names: &[&str]) -> Vec<Watched> {
    let block = |name: &&str| format!("connection \"{name}\" {{\n  plugin = \"postgres\"\n}}\n");
    watched(&names.iter().map(block).collect::<String>())
}

fn book(names: &[&str]) -> Book {
    let mut book = Book::default();
    book.watch(sources(names), &BTreeSet::new(), 0, |_| 1_000);
    book
}

fn there() -> Answer {
    Answer::There(Duration::from_millis(3))
}

fn gone(kind: Kind) -> Answer {
    Answer::Failed(Failure {
        kind,
        text: "gone".into(),
    })
}

/// Asks the next one at once, whatever the time.
fn ask(book: &mut Book, answer: Answer) -> (String, u64, Option<Turn>) {
    ask_at(book, 0, answer)
}

/// Asks the next one, not before this.
fn ask_at(book: &mut Book, now: u64, answer: Answer) -> (String, u64, Option<Turn>) {
    let now = book.next(ALL).expect("one is due").max(now);
    let (number, watched) = book.begin(ALL, now).expect("it is asked");
    let name = watched.connection.name.clone();
    let turn = book.found(number, &name, answer, now);
    book.over(number, &name, now);
    (name, now, turn)
}

#[test]
fn nobody_is_asked_before_it_is_due_or_twice_at_a_time() {
    let mut book = book(&["a", "b"]);
    assert_eq!(book.next(ALL), Some(1_000));
    assert!(book.begin(ALL, 999).is_none());
    let (first, one) = book.begin(ALL, 1_000).unwrap();
    let (second, other) = book.begin(ALL, 1_000).unwrap();
    assert_ne!(one.connection.name, other.connection.name);
    assert!(book.begin(ALL, 100_000).is_none() && book.next(ALL).is_none());
    assert_eq!(book.busy().well, 2);
    book.found(first, "a", there(), 1_010);
    book.over(first, "a", 1_010);
    assert_eq!(book.next(ALL), Some(31_010));
    // Its session was lost: it says nothing of the source.
    book.over(second, "b", 2_000);
    assert_eq!(book.next(ALL), Some(3_000));
    assert_eq!(book.busy().well, 0);
    let rows = book.page(3_000).json();
    assert_eq!(rows[0]["reachable"], true);
    assert_eq!(rows[0]["latency"], 3.0);
    assert_eq!(
        (&rows[0]["checked"], &rows[0]["next"]),
        (&1.99.into(), &28.01.into())
    );
    assert_eq!(rows[1]["reachable"], serde_json::Value::Null);
}

#[test]
fn what_is_lost_keeps_nobody_else_waiting() {
    let mut book = book(&["a", "b"]);
    assert_eq!(ask(&mut book, gone(Kind::Refused)).2, Some(Turn::Lost));
    ask(&mut book, there());
    let well = Room { lost: false, ..ALL };
    // a is due after 5 s, b after 30.
    assert_eq!(book.next(ALL), Some(6_000));
    assert_eq!(book.next(well), Some(31_000));
    let (number, _) = book.begin(well, 31_000).unwrap();
    assert_eq!(book.busy().well, 1);
    book.slow(number);
    let busy = book.busy();
    assert_eq!((busy.well, busy.lost), (0, 1));
}

#[test]
fn sessions_that_hang_become_rare_and_are_counted() {
    let mut book = book(&["a"]);
    let mut began = Vec::new();
    let mut now = 0;
    while now < 24 * 3_600_000 {
        now = book.next(ALL).unwrap();
        let Some((number, _)) = book.begin(ALL, now) else {
            continue;
        };
        began.push(number);
        book.found(number, "a", gone(Kind::Timeout), now + 10_000);
    }
    assert!((8..=12).contains(&began.len()), "{}", began.len());
    assert_eq!(book.busy().hung, began.len());
    let mut answers = book;
    answers.again("a", now);
    ask_at(&mut answers, now, there());
    let (_, at, turn) = ask(&mut answers, there());
    assert_eq!(
        (at, turn),
        (now + 30_000, None),
        "what hangs is of another time"
    );
    let mut book = answers;
    let turn = ask(&mut book, gone(Kind::Timeout)).2;
    assert_eq!(turn, Some(Turn::Lost));
    now = book.next(ALL).unwrap();
    let (number, _) = book.begin(ALL, now).unwrap();
    began.push(number);
    book.found(number, "a", gone(Kind::Timeout), now);
    let row = &book.page(now).json()[0];
    assert_eq!(row["reachable"], false);
    assert_eq!(row["attempts"], 2, "{row}");
    // No more of them, if there is no room for it.
    let crowded = Room {
        again: false,
        ..ALL
    };
    let later = now + 48 * 3_600_000;
    assert!(book.begin(crowded, later).is_none());
    // One that ends makes room, and one that answers is all it takes.
    for number in &began {
        book.over(*number, "a", later);
    }
    assert_eq!(book.busy().hung, 0);
    assert_eq!(ask(&mut book, there()).2, Some(Turn::Restored));
}

#[test]
fn few_hang_in_a_wrapper_and_nobody_elses_sources_wait_for_that() {
    let block = |(name, plugin): (&str, &str)| {
        let more = match plugin {
            "mysql" => "  database = \"d\"\n",
            _ => "",
        };
        format!("connection \"{name}\" {{\n  plugin = \"{plugin}\"\n{more}}}\n")
    };
    let all = [("a", "mysql"), ("b", "mysql"), ("c", "postgres")];
    let mut book = Book::default();
    let text: String = all.into_iter().map(block).collect();
    book.watch(watched(&text), &BTreeSet::new(), 0, |_| 1_000);
    let (number, first) = book.begin(ALL, 1_000).unwrap();
    assert_eq!(first.connection.name, "a");
    book.found(number, "a", gone(Kind::Timeout), 1_000);
    let crowded = Room { more: false, ..ALL };
    // The second is told why it is not asked, and stays as it was; the third is asked.
    assert!(book.begin(crowded, 1_000).is_none());
    let (_, third) = book.begin(crowded, 1_000).unwrap();
    assert_eq!(third.connection.name, "c");
    let rows = book.page(1_000).json();
    let second = &rows[1];
    assert_eq!(second["name"], "b");
    assert_eq!(second["reachable"], serde_json::Value::Null);
    let why = second["failure"].as_str().unwrap();
    assert!(why.contains("a session waits in mysql_fdw"), "{why}");
    // Once that one has ended it is asked.
    book.over(number, "a", 2_000);
    assert_eq!(book.next(ALL), Some(6_000));
    ask(&mut book, there());
    let (name, at, _) = ask(&mut book, there());
    assert_eq!((name.as_str(), at), ("b", 31_000));
}

#[test]
fn who_asks_gets_an_answer_that_was_found_afterwards() {
    let mut book = book(&["a"]);
    let (before, _) = book.begin(ALL, 1_000).unwrap();
    assert!(book.again("a", 2_000));
    assert!(!book.again("nobody", 2_000));
    assert_eq!(book.found(before, "a", gone(Kind::Refused), 2_500), None);
    book.over(before, "a", 2_500);
    assert_eq!(book.page(2_500).told().count(), 0);
    ask(&mut book, there());
    let told: Vec<_> = book.page(2_500).told().collect();
    assert!(
        matches!(&told[..], [News::Asked(name)] if name == "a"),
        "{told:?}"
    );
    ask(&mut book, there());
    assert_eq!(book.page(90_000).told().count(), 0);
}

#[test]
fn who_asks_goes_before_all_that_are_due() {
    let mut book = book(&["a", "b", "c"]);
    assert!(book.again("b", 90_000));
    assert_eq!(ask_at(&mut book, 90_000, there()).0, "b");
    assert_ne!(ask(&mut book, there()).0, "b");
}

#[test]
fn what_was_not_written_is_written_later() {
    let mut book = book(&["a"]);
    ask(&mut book, gone(Kind::Refused));
    book.again("a", 1_500);
    let page = book.page(2_000);
    assert!(!book.is_changed());
    ask(&mut book, there());
    book.not_written(page);
    let page = book.page(3_000);
    let row = &page.json()[0];
    assert_eq!(row["health"], serde_json::json!(["lost", "restored"]));
    assert_eq!(
        (&row["reachable"], &row["latency"]),
        (&true.into(), &3.0.into())
    );
    assert!(row["failure"].as_str().unwrap().starts_with("gone ("));
    assert_eq!(page.told().count(), 1);
    assert!(!book.is_changed());
}

#[test]
fn another_target_is_asked_at_once_and_what_goes_is_forgotten() {
    let mut book = book(&["a", "b"]);
    ask(&mut book, gone(Kind::Authentication));
    ask(&mut book, there());
    assert_eq!(
        book.next(ALL),
        Some(31_000),
        "refused credentials are not tried again"
    );
    book.page(1_000);
    // The same again, and a label more: nothing changes.
    book.watch(sources(&["a", "b"]), &BTreeSet::new(), 2_000, |_| 9_000);
    assert_eq!((book.next(ALL), book.is_changed()), (Some(31_000), false));
    let other = "connection \"a\" {\n  plugin = \"postgres\"\n  password = \"new\"\n}\n";
    book.watch(watched(other), &BTreeSet::new(), 3_000, |_| 9_000);
    assert_eq!(
        ask(&mut book, there()),
        ("a".into(), 3_000, Some(Turn::Restored))
    );
    let rows = book.page(4_000).json();
    assert_eq!(rows[1]["name"], "b");
    assert_eq!(rows[1]["reachable"], serde_json::Value::Null);
    assert_eq!(rows[1]["next"], serde_json::Value::Null);
}

#[test]
fn an_import_that_says_otherwise_is_believed_enough_to_ask() {
    let mut book = book(&["a"]);
    book.heard("a", true, 10);
    assert_eq!(book.next(ALL), Some(1_000), "nothing was known anyway");
    book.heard("a", false, 10);
    assert_eq!(ask(&mut book, gone(Kind::Authentication)).1, 10);
    book.heard("a", false, 20);
    assert_eq!(book.next(ALL), None);
    book.heard("a", true, 20);
    assert_eq!(
        ask(&mut book, there()),
        ("a".into(), 20, Some(Turn::Restored))
    );
}

#[test]
fn what_an_earlier_leader_knew_is_gone_on_from() {
    let known = [
        ("a".to_owned(), false),
        ("b".to_owned(), true),
        ("c".to_owned(), true),
    ];
    let mut book = Book::new(known.into());
    book.watch(sources(&["a", "b"]), &BTreeSet::new(), 5, |_| 1_000);
    assert_eq!(
        ask(&mut book, there()),
        ("a".into(), 5, Some(Turn::Restored))
    );
    assert_eq!(ask(&mut book, there()), ("b".into(), 1_000, None));
    let names: Vec<_> = (book.page(2_000).json().as_array().unwrap().iter())
        .map(|row| row["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["a", "b", "c"], "nobody watches c any more");
}

#[test]
fn what_was_found_of_another_target_is_not_told_of_this_one() {
    let mut book = book(&["a"]);
    ask(&mut book, gone(Kind::Refused));
    book.page(1_000);
    ask(&mut book, gone(Kind::Refused));
    let other = watched("connection \"a\" {\n  plugin = \"postgres\"\n  host = \"b\"\n}\n");
    // Its import is under way: that asks first.
    book.watch(other, &BTreeSet::from(["a".into()]), 3_000, |_| 9_000);
    let page = book.page(3_000);
    let row = &page.json()[0];
    for (fact, wanted) in [
        ("forget", true.into()),
        ("reachable", serde_json::Value::Null),
        ("failure", serde_json::Value::Null),
        ("checked", serde_json::Value::Null),
    ] {
        assert_eq!(row[fact], wanted, "{fact}: {row}");
    }
    // It could not be written, and is not lost by that.
    book.not_written(page);
    book.heard("a", true, 4_000);
    assert_eq!(
        ask(&mut book, there()),
        ("a".into(), 4_000, Some(Turn::Restored))
    );
    let row = &book.page(5_000).json()[0];
    assert_eq!(
        (&row["forget"], &row["reachable"], &row["failure"]),
        (&true.into(), &true.into(), &serde_json::Value::Null)
    );
}
