//! Tunnels to a source through an ssh server.

use std::fmt;

use crate::hash::hash;

/// First port of the range for tunnels. A tunnel's port is derived from its key, so that it is the
/// same after a restart. The range is below the system's ephemeral ports.
const FIRST_PORT: u16 = 15_000;
const PORT_COUNT: u16 = 5_000;

/// Address of the ssh server. Fields that are `None` come from ssh's own configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ssh {
    /// Host name, address, or alias in ssh's configuration.
    pub host: String,
    /// User name.
    pub user: Option<String>,
    /// Port of the ssh server.
    pub port: Option<u16>,
    /// File of the private key.
    pub key: Option<String>,
    /// File of the accepted host keys.
    pub known_hosts: Option<String>,
}

/// Tunnel from a local port to a source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tunnel {
    /// Ssh server.
    pub ssh: Ssh,
    /// Host of the source, as seen from the ssh server.
    pub host: String,
    /// Port of the source.
    pub port: u16,
    /// Server option for the port, which names the local end of the tunnel.
    pub(crate) port_option: String,
}

impl Tunnel {
    /// Returns the identity of the tunnel: connections with the same key share it. It contains no
    /// secrets.
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

    /// Returns the default local port. `times` is how often the port was found in use by another
    /// program.
    pub fn default_port(&self, times: u16) -> u16 {
        let key = self.key();
        let number = u64::from_str_radix(key.get(..8).unwrap_or("0"), 16).unwrap_or(0);
        let step = (number + u64::from(times)) % u64::from(PORT_COUNT);
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
