//! Reads the block `ssh` of a connection, whose source is reached through a tunnel.

use crate::model::Ssh;
use spcd_lang::settings::{NestedBlock, Settings};
use spcd_lang::syntax::{Problem, Span};

const ATTRIBUTES: [&str; 5] = ["host", "user", "port", "key", "known_hosts"];

/// Reads the block, if there is one; returns it with its span.
pub(super) fn read(
    settings: &Settings,
    file: &str,
    problems: &mut Vec<Problem>,
) -> Option<(Ssh, Span)> {
    if let Some(setting) = settings.get("ssh") {
        let problem = Problem::new(setting.span, "`ssh` is a block");
        problems.push(problem.hint("write `ssh { … }` without `=`"));
    }
    let mut sections = settings
        .blocks
        .iter()
        .filter(|section| &*section.kind == "ssh");
    let section = sections.next()?;
    for another in sections {
        let problem = Problem::new(another.span, "a connection has one `ssh` block");
        problems.push(problem.hint("remove one of the two"));
    }
    let before = problems.len();
    let ssh = one(section, file, problems);
    (problems.len() == before).then_some((ssh, section.span))
}

/// Returns the attribute that a host contains, which ssh's command line would take for a part of
/// the name.
fn more_than_a_host(host: &str) -> Option<&'static str> {
    if host.contains('@') {
        return Some("user");
    }
    let (name, port) = host.rsplit_once(':')?;
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    // An IPv6 address contains colons; with a port it is in brackets.
    (is_port && (!name.contains(':') || name.ends_with(']'))).then_some("port")
}

fn one(section: &NestedBlock, file: &str, problems: &mut Vec<Problem>) -> Ssh {
    let settings = &section.settings;
    section.report_unknown("attribute", &ATTRIBUTES, problems);
    let mut text = |name: &str| {
        let text = settings.text(name, problems)?;
        let odd = |c: char| c.is_control() || c.is_whitespace();
        // The value becomes an argument of ssh.
        let of_ssh = matches!(name, "host" | "user");
        if of_ssh && (text.is_empty() || text.starts_with('-') || text.contains(odd)) {
            let span = section.value_span(name);
            let message = format!("this cannot be the `{name}` of an ssh server");
            problems.push(Problem::new(span, message));
            return None;
        }
        if name == "host"
            && let Some(attribute) = more_than_a_host(&text)
        {
            let span = section.value_span(name);
            let problem = Problem::new(span, format!("`host` also contains the {attribute}"));
            let example = if attribute == "user" { "\"…\"" } else { "22" };
            problems.push(problem.hint(format!(
                "write it as an attribute: `{attribute} = {example}`"
            )));
            return None;
        }
        Some(text).filter(|text| !text.is_empty())
    };
    let (host, user) = (text("host"), text("user"));
    let path = |text: Option<String>| text.map(|text| crate::plugin::resolve(file, &text));
    let (key, known_hosts) = (path(text("key")), path(text("known_hosts")));
    let port = text("port").and_then(|port| {
        let number = port.trim().parse().ok().filter(|port: &u16| *port > 0);
        if number.is_none() {
            let span = section.value_span("port");
            let problem = Problem::new(span, "expected a number from 1 to 65535 for `port`");
            problems.push(problem.hint("write `port = 22`"));
        }
        number
    });
    if host.is_none() && !settings.was_written("host") {
        let problem = Problem::new(section.span, "`ssh` needs the attribute `host`");
        problems.push(problem.hint("write `host = \"…\"`, the server that leads to the source"));
    }
    Ssh {
        host: host.unwrap_or_default(),
        user,
        port,
        key,
        known_hosts,
    }
}
