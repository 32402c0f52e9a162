//! Measurements, run by scripts/bench.sh. Each figure is printed beside what it is to be compared
//! with; nothing here passes or fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a measurement ends by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

#[path = "../page/chromium.rs"]
#[allow(dead_code, reason = "the tests do more with it")]
mod chromium;
mod clients;
mod cold;
#[path = "../page/fill.rs"]
mod fill;
mod first_light;
mod for_each;
mod gateway;
mod language;
mod many;
mod measure;
mod mirror;
mod page;
mod planner;
mod queries;
mod scale;
mod united;
mod wanted;

#[tokio::main]
async fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    // Parts that need the same are measured together.
    let runs = |names: &[&str]| {
        wanted.is_empty() || wanted.iter().any(|one| names.contains(&one.as_str()))
    };
    if runs(&["language"]) {
        language::run();
    }
    if runs(&["planner"]) {
        planner::run();
    }
    if runs(&["first_light"]) {
        first_light::run().await;
    }
    if runs(&["clients"]) {
        clients::run().await;
    }
    if runs(&["cold_static", "cpu", "drop"]) {
        cold::fixed().await;
    }
    if runs(&["cold_dynamic"]) {
        cold::dynamic().await;
    }
    if runs(&["listeners"]) {
        cold::listeners().await;
    }
    if runs(&["slow_sources"]) {
        cold::slow_sources().await;
    }
    if runs(&["restart", "column_added", "drop_many"]) {
        many::run().await;
    }
    if runs(&["aggregator"]) {
        united::aggregator().await;
    }
    if runs(&["lanes"]) {
        gateway::lanes().await;
    }
    if runs(&["through_gateway"]) {
        gateway::through_gateway().await;
    }
    if runs(&["cold_gateway"]) {
        gateway::cold().await;
    }
    if runs(&["mirror"]) {
        mirror::run().await;
    }
    if runs(&["for_each"]) {
        for_each::run().await;
    }
    if runs(&["one_wanted"]) {
        wanted::run().await;
    }
    if runs(&["one_file"]) {
        united::one_file().await;
    }
    if runs(&["queries"]) {
        queries::run().await;
    }
    if runs(&["page"]) {
        page::page().await;
    }
    if runs(&["idle"]) {
        page::idle().await;
    }
    if runs(&["scale"]) {
        scale::run().await;
    }
    if runs(&["probed"]) {
        page::probed().await;
    }
}
