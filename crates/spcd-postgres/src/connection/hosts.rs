//! The servers of an endpoint.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::params::Params;

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Address to connect to, and name that the certificate must contain.
    pub name: HostName,
    /// `hostaddr`: connects without a DNS lookup. The name is then used for TLS only.
    pub address: Option<IpAddr>,
    /// Port, also part of a socket's file name.
    pub port: u16,
}

/// A name, or the directory of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostName {
    /// A host name or an address.
    Tcp(String),
    /// The directory of a Unix socket.
    Socket(PathBuf),
}

impl Host {
    /// Whether the server runs on this machine: a socket or a loopback address.
    pub fn is_local(&self) -> bool {
        match (&self.name, self.address) {
            (HostName::Socket(_), _) => true,
            (_, Some(address)) => address.is_loopback(),
            (HostName::Tcp(name), None) => match name.parse::<IpAddr>() {
                Ok(address) => address.is_loopback(),
                Err(_) => name == "localhost",
            },
        }
    }

    /// Name that a password file uses for the host.
    pub fn passfile_name(&self) -> String {
        match &self.name {
            HostName::Tcp(name) => name.clone(),
            HostName::Socket(directory) if is_default_socket_directory(directory) => {
                "localhost".to_owned()
            }
            HostName::Socket(directory) => directory.display().to_string(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            HostName::Tcp(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            HostName::Tcp(name) => write!(f, "{name}:{}", self.port),
            HostName::Socket(directory) => write!(
                f,
                "{}",
                directory.join(format!(".s.PGSQL.{}", self.port)).display()
            ),
        }
    }
}

/// Pairs `host`, `hostaddr` and `port`, in order.
///
/// # Errors
/// Lists of different lengths and invalid addresses or ports. The text contains no values.
pub fn hosts(params: &Params) -> Result<Vec<Host>, String> {
    let list = |name: &str| -> Vec<&str> {
        params
            .get(name)
            .filter(|value| !value.is_empty())
            .map(|value| value.split(',').collect())
            .unwrap_or_default()
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(format!(
            "{} hosts and {} hostaddr values are given; give one for each",
            names.len(),
            addresses.len()
        ));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!(
            "{count} hosts and {} ports are given; give one port, or one for each host",
            ports.len()
        ));
    }
    (0..count)
        .map(|index| {
            let address = match addresses.get(index).filter(|text| !text.is_empty()) {
                Some(text) => {
                    let address: IpAddr = text.parse().map_err(|_| {
                        "hostaddr is not an IP address; names belong in host".to_owned()
                    })?;
                    Some(address)
                }
                None => None,
            };
            let name = match (names.get(index).filter(|text| !text.is_empty()), address) {
                (Some(path), _) if path.starts_with('/') => HostName::Socket(PathBuf::from(path)),
                (Some(name), _) => HostName::Tcp((*name).to_owned()),
                (None, Some(address)) => HostName::Tcp(address.to_string()),
                (None, None) => default_host(),
            };
            let port = match ports
                .get(index)
                .or_else(|| ports.first())
                .filter(|text| !text.is_empty())
            {
                Some(text) => text
                    .parse()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| "the port is not a number from 1 to 65535".to_owned())?,
                None => 5432,
            };
            Ok(Host {
                name,
                address,
                port,
            })
        })
        .collect()
}

/// Returns Debian's socket directory if it exists, else the one compiled into libpq.
fn default_host() -> HostName {
    let debian = Path::new(DEBIAN_SOCKETS);
    HostName::Socket(
        if debian.is_dir() {
            debian
        } else {
            Path::new(LIBPQ_SOCKETS)
        }
        .to_owned(),
    )
}

const DEBIAN_SOCKETS: &str = "/var/run/postgresql";
const LIBPQ_SOCKETS: &str = "/tmp";

fn is_default_socket_directory(directory: &Path) -> bool {
    [DEBIAN_SOCKETS, "/run/postgresql", LIBPQ_SOCKETS]
        .iter()
        .any(|default| directory == Path::new(default))
}
