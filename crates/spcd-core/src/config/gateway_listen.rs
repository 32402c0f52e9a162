//! Reads the block `gateway` of `spcd.hcl`: a private gateway for a hub on another machine.

use core::net::{IpAddr, SocketAddr};

use spcd_lang::settings::NestedBlock;
use spcd_lang::syntax::Problem;

/// Settings of the block, with the expected values.
const SETTINGS: [(&str, &str); 6] = [
    ("listen", "an address and a port (\"10.0.0.5:15500\")"),
    (
        "hub_address",
        "the hub's address, or a range (\"10.0.0.9\", \"10.0.0.0/24\")",
    ),
    (
        "host",
        "the name or address by which the hub reaches the gateway",
    ),
    ("tls_cert_file", "a file with the certificate"),
    ("tls_key_file", "a file with the key"),
    (
        "hub_sslrootcert",
        "a file on the hub's machine with the certificate's authority",
    ),
];

/// Where a private gateway listens for a hub on another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayListen {
    /// Address and port.
    pub address: SocketAddr,
    /// Address or range from which the hub connects, as `pg_hba.conf` has it.
    pub hub_address: String,
    /// Name or address by which the hub reaches it.
    pub host: String,
    /// File with the certificate, as written.
    pub tls_cert_file: String,
    /// File with its key, as written.
    pub tls_key_file: String,
    /// File on the hub's machine by which the hub verifies the certificate and the name.
    pub hub_sslrootcert: Option<String>,
}

/// Reads the block and reports its problems.
pub(super) fn gateway_listen(
    section: &NestedBlock,
    problems: &mut Vec<Problem>,
) -> Option<GatewayListen> {
    if !section.labels.is_empty() {
        let problem = Problem::new(section.span, "`gateway` has no label");
        problems.push(problem.hint("write `gateway { … }`"));
    }
    section.report_unknown("setting", &SETTINGS.map(|(name, _)| name), problems);
    let settings = &section.settings;
    let mut missing = Vec::new();
    let mut text = |name: &'static str, is_required: bool, problems: &mut Vec<Problem>| {
        let text = settings
            .text(name, problems)
            .filter(|text| !text.is_empty());
        if is_required && text.is_none() && !settings.was_written(name) {
            missing.push(name);
        }
        text
    };
    let address = text("listen", true, problems);
    let hub_address = text("hub_address", true, problems);
    let tls_cert_file = text("tls_cert_file", true, problems);
    let tls_key_file = text("tls_key_file", true, problems);
    let host = text("host", false, problems);
    let hub_sslrootcert = text("hub_sslrootcert", false, problems);
    for name in missing {
        let message = format!("`gateway` needs `{name}`: {}", expected(name));
        problems.push(Problem::new(section.span, message));
    }
    let address = checked(section, "listen", address, problems, |text| {
        text.parse().ok()
    });
    let hub_address = checked(section, "hub_address", hub_address, problems, hba_address);
    let address: SocketAddr = address?;
    Some(GatewayListen {
        host: host.unwrap_or_else(|| address.ip().to_string()),
        address,
        hub_address: hub_address?,
        tls_cert_file: tls_cert_file?,
        tls_key_file: tls_key_file?,
        hub_sslrootcert,
    })
}

/// Returns the description of a setting's value.
fn expected(name: &str) -> &'static str {
    let setting = SETTINGS.iter().find(|(known, _)| *known == name);
    setting.map_or("a text", |(_, expected)| expected)
}

/// Returns the parsed value of a setting, or reports what was expected.
fn checked<T>(
    section: &NestedBlock,
    name: &str,
    text: Option<String>,
    problems: &mut Vec<Problem>,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let text = text?;
    let parsed = parse(text.trim());
    if parsed.is_none() {
        let message = format!("expected {} for `{name}`", expected(name));
        problems.push(Problem::new(section.value_span(name), message));
    }
    parsed
}

/// Returns an address as `pg_hba.conf` wants it: with the length of its prefix.
fn hba_address(text: &str) -> Option<String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = length.unwrap_or(most);
    (length <= most).then(|| format!("{address}/{length}"))
}

/// Returns the names of all settings of the block: their values may be shown.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::hba_address;

    #[test]
    fn an_address_has_a_prefix() {
        for (text, expected) in [
            ("10.0.0.9", Some("10.0.0.9/32")),
            ("10.0.0.0/24", Some("10.0.0.0/24")),
            ("fd00::1", Some("fd00::1/128")),
            ("10.0.0.0/33", None),
            ("all", None),
            ("10.0.0.9 trust\nhost all all 0.0.0.0/0", None),
        ] {
            assert_eq!(hba_address(text).as_deref(), expected, "{text}");
        }
    }
}
