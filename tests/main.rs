//! Tests that drive the built binary against real servers and a real file system.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends by panicking"
)]

mod adopt;
mod aggregate;
mod alone;
mod ask;
mod attacks;
mod bad_input;
mod by_hand;
mod client;
mod clock;
mod cluster;
mod columns;
mod comments;
mod connect;
mod crash;
mod csv;
mod damage;
mod destroy;
mod disk;
mod doctor;
mod events;
mod examples;
mod failover;
mod faults;
mod for_each;
mod gateway;
mod guarded;
mod health;
mod hints;
mod http;
mod import;
mod inert;
mod limits;
mod locks;
mod look;
mod messages;
mod migrate;
mod mirror;
mod names;
mod ordinary_role;
mod page;
mod partial;
mod pass;
mod patroni;
mod patterns;
mod plain_words;
mod query;
mod readable;
mod requests;
mod restart;
mod search_path;
mod secrets;
mod service;
mod session;
mod settings;
mod source_types;
mod steampipe;
mod stop;
mod support;
mod told;
mod tuning;
mod tunnel;
mod unchanged;
mod vanished;
mod wait;
mod watch;
mod wrappers;
mod writers;
