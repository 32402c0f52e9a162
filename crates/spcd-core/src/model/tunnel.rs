//! Ways to a source through an ssh server.

use std::fmt;

use crate::hash::hash;

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

    /// The port on this machine where it is expected, unless another program has it: then `times`
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
