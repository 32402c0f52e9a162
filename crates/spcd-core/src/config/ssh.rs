//! The block `ssh` of a connection: its source is reached through a tunnel that the daemon keeps
//! open.

use std::fmt;

use crate::hash::hash;
use spcd_lang::nearest::nearest;
use spcd_lang::settings::{Section, Settings};
use spcd_lang::syntax::{Problem, Span};

const KNOWN: [&str; 5] = ["host", "user", "port", "key", "known_hosts"];

/// The ports from which one is chosen by what a tunnel is, so that it is the same after a restart:
/// below those that the system gives to outgoing connections.
const FIRST_PORT: u16 = 15_000;
const PORTS: u16 = 5_000;

/// How the ssh server is reached. What is `None` is for ssh's own configuration to say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ssh {
    /// A name, an address, or what ssh's configuration calls it.
    pub host: String,
    /// Who logs in.
    pub user: Option<String>,
    /// The ssh server's port.
    pub port: Option<u16>,
    /// The file of the private key.
    pub key: Option<String>,
    /// The file of the servers' keys that are believed.
    pub known_hosts: Option<String>,
}

/// What leads from a port on this machine to a source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tunnel {
    /// Through which server.
    pub ssh: Ssh,
    /// The source, as the ssh server reaches it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The option of the server that says the port: it names the tunnel's end here.
    pub(crate) port_option: String,
}

impl Tunnel {
    /// Stands for the tunnel: two connections of one key share it. No secrets are in it.
    pub fn key(&self) -> String {
        let Ssh {
            host,
            user,
            port,
            key,
            known_hosts,
        } = &self.ssh;
        let port = port.map(|port| port.to_string());
        hash([
            host.as_str(),
            user.as_deref().unwrap_or_default(),
            port.as_deref().unwrap_or_default(),
            key.as_deref().unwrap_or_default(),
            known_hosts.as_deref().unwrap_or_default(),
            &self.host,
            &self.port.to_string(),
        ])
    }

    /// The port on this machine where it is expected, unless somebody else has that: then `times`
    /// is how often it was so.
    pub fn usual_port(&self, times: u16) -> u16 {
        let key = self.key();
        let number = u64::from_str_radix(key.get(..8).unwrap_or("0"), 16).unwrap_or(0);
        let step = (number + u64::from(times)) % u64::from(PORTS);
        FIRST_PORT + u16::try_from(step).unwrap_or(0)
    }
}

/// `deploy@bastion:22 to db.internal:5432`
impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}:{}", self.ssh, self.host, self.port)
    }
}

impl fmt::Display for Ssh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        f.write_str(&self.host)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// Reads the block, where there is one, with its place.
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
        .sections
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

/// What stands in a host that has an attribute of its own, as ssh's command line would take it for a
/// part of the name.
fn more_than_a_host(host: &str) -> Option<&'static str> {
    if host.contains('@') {
        return Some("user");
    }
    let (name, port) = host.rsplit_once(':')?;
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    // An IPv6 address has colons, too; one with a port stands in brackets.
    (is_port && (!name.contains(':') || name.ends_with(']'))).then_some("port")
}

fn one(section: &Section, file: &str, problems: &mut Vec<Problem>) -> Ssh {
    let settings = &section.settings;
    for setting in &settings.list {
        if !KNOWN.contains(&&*setting.name) {
            let message = format!("`ssh` has no attribute `{}`", setting.name);
            let problem = Problem::new(setting.span, message);
            problems.push(match nearest(&setting.name, KNOWN.into_iter()) {
                Some(near) => problem.hint(format!("did you mean `{near}`?")),
                None => problem.hint("it has `host`, `user`, `port`, `key` and `known_hosts`"),
            });
        }
    }
    for section in &settings.sections {
        let message = format!("`ssh` has no block `{}`", section.kind);
        problems.push(Problem::new(section.span, message));
    }
    let mut text = |name: &str| {
        let text = settings.text(name, problems)?;
        let odd = |c: char| c.is_control() || c.is_whitespace();
        // It becomes an argument of ssh.
        let of_ssh = matches!(name, "host" | "user");
        if of_ssh && (text.is_empty() || text.starts_with('-') || text.contains(odd)) {
            let span = settings.get(name).map_or(section.span, |s| s.value_span);
            let message = format!("this cannot be the `{name}` of an ssh server");
            problems.push(Problem::new(span, message));
            return None;
        }
        if name == "host"
            && let Some(attribute) = more_than_a_host(&text)
        {
            let span = settings.get(name).map_or(section.span, |s| s.value_span);
            let problem = Problem::new(span, format!("`host` holds the {attribute}, too"));
            let example = if attribute == "user" { "\"…\"" } else { "22" };
            problems.push(problem.hint(format!("write it apart: `{attribute} = {example}`")));
            return None;
        }
        Some(text).filter(|text| !text.is_empty())
    };
    let (host, user) = (text("host"), text("user"));
    let path = |text: Option<String>| text.map(|text| crate::plugin::below(file, &text));
    let (key, known_hosts) = (path(text("key")), path(text("known_hosts")));
    let port = text("port").and_then(|port| {
        let number = port.trim().parse().ok().filter(|port: &u16| *port > 0);
        if number.is_none() {
            let span = settings.get("port").map_or(section.span, |s| s.value_span);
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
