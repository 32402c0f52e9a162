//! Address of the page, the API and the metrics.

use core::net::SocketAddr;

/// Address from the setting `http`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// HTTP is off.
    Off,
    /// Address and port.
    Tcp(SocketAddr),
    /// Unix socket; the path as written.
    Unix(String),
}

impl Default for Listen {
    fn default() -> Self {
        Self::Tcp(SocketAddr::from(([127, 0, 0, 1], 7733)))
    }
}

impl Listen {
    /// Parses `127.0.0.1:7733`, `[::1]:7733`, `localhost:7733`, `unix:/path` or `off`.
    ///
    /// # Errors
    /// The accepted forms.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.contains('\0') {
                return Err("unix: wants the path of a socket: unix:/run/spcd/http.sock".into());
            }
            return Ok(Self::Unix(path.to_owned()));
        }
        // A name may resolve to another address while the daemon runs; `localhost` does not.
        let numeric = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_owned(),
        };
        numeric.parse().map(Self::Tcp).map_err(|_| {
            "http must be an address and a port (127.0.0.1:7733), unix:/path or off".to_owned()
        })
    }

    /// Returns whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Off | Self::Unix(_) => true,
            Self::Tcp(address) => address.ip().is_loopback(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Listen;

    #[test]
    fn an_address_a_socket_or_nothing() {
        assert_eq!(Listen::parse("off"), Ok(Listen::Off));
        assert_eq!(Listen::parse("localhost:7733"), Ok(Listen::default()));
        assert_eq!(
            Listen::parse("unix:/run/s"),
            Ok(Listen::Unix("/run/s".into()))
        );
        for (text, local) in [
            ("127.0.0.1:80", true),
            ("127.9.9.9:80", true),
            ("[::1]:80", true),
            ("0.0.0.0:80", false),
            ("[::]:80", false),
            ("10.0.0.1:80", false),
        ] {
            let listen = Listen::parse(text).unwrap();
            assert_eq!(listen.is_local(), local, "{text}");
        }
        for text in [
            "",
            ":7733",
            "7733",
            "example.com:80",
            "unix:",
            "127.0.0.1",
            "on",
        ] {
            assert!(Listen::parse(text).is_err(), "{text}");
        }
    }
}
