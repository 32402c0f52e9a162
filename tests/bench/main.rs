//! Measurements, run by scripts/bench.sh. Each figure is printed beside what it is to be compared
//! with; nothing here passes or fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a measurement ends by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod first_light;
mod language;

#[tokio::main]
async fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|one| one == name);
    if runs("language") {
        language::run();
    }
    if runs("first_light") {
        first_light::run().await;
    }
    if runs("clients") {
        clients::run().await;
    }
}
