//! Addresses of a private cluster's server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::layout::Layout;
use super::{ClusterError, USER};
use crate::settings::Settings;
use spcd_postgres::connection::Endpoint;

/// Returns the endpoint of the running server.
///
/// # Errors
/// When there is no cluster yet.
pub fn endpoint(settings: &Settings) -> Result<Endpoint, ClusterError> {
    let layout = Layout::of(settings).left();
    endpoint_of(&layout, port(&layout)?)
}

/// Returns the options with which postgres_fdw connects to the cluster over TCP.
///
/// # Errors
/// When there is no cluster yet.
pub fn tcp_options(settings: &Settings) -> Result<BTreeMap<String, String>, ClusterError> {
    let layout = Layout::of(settings).left();
    let port = port(&layout)?;
    let host = match &layout.listen {
        Some(listen) => listen.host.clone(),
        None => "127.0.0.1".to_owned(),
    };
    let mut options = vec![
        ("host", host),
        ("port", port.to_string()),
        ("dbname", layout.database().to_owned()),
    ];
    match layout.listen.map(|listen| listen.hub_sslrootcert) {
        Some(Some(root)) => {
            options.push(("sslmode", "verify-full".to_owned()));
            options.push(("sslrootcert", root));
        }
        Some(None) => options.push(("sslmode", "require".to_owned())),
        None => {}
    }
    Ok((options.into_iter())
        .map(|(name, value)| (name.to_owned(), value))
        .collect())
}

/// Returns the hub's URL for other programs. It names the password file. Starts nothing.
///
/// # Errors
/// When there is no cluster yet.
pub fn url(settings: &Settings) -> Result<String, ClusterError> {
    let layout = Layout::of(settings).left();
    let port = port(&layout)?;
    let passfile = percent_encode(&layout.passfile().display().to_string());
    Ok(format!(
        "postgresql://{USER}@127.0.0.1:{port}/{}?passfile={passfile}",
        layout.database()
    ))
}

/// Like [`url`], but contains the password: drivers without libpq, such as node-postgres, do not
/// support `passfile`.
///
/// # Errors
/// The cluster does not exist, or its password cannot be read.
pub fn url_with_password(settings: &Settings) -> Result<String, ClusterError> {
    let layout = Layout::of(settings).left();
    let port = port(&layout)?;
    let password = layout.password()?;
    Ok(format!(
        "postgresql://{USER}:{}@127.0.0.1:{port}/{}",
        percent_encode(password.expose()),
        layout.database()
    ))
}

pub(super) fn port(layout: &Layout) -> Result<u16, ClusterError> {
    layout
        .port()
        .filter(|_| layout.passfile().exists())
        .ok_or_else(|| {
            ClusterError::Programs(format!(
                "there is no private cluster in {} yet; start `spcd run`, which creates it, or give --database",
                layout.shown()
            ))
        })
}

/// Uses the socket if its path is short enough, otherwise TCP.
pub(super) fn endpoint_of(layout: &Layout, port: u16) -> Result<Endpoint, ClusterError> {
    let host = layout
        .usable_socket_dir()
        .unwrap_or_else(|| PathBuf::from("127.0.0.1"));
    Ok(Endpoint::local(
        &host,
        port,
        USER,
        layout.database(),
        layout.password()?,
    ))
}

/// Characters to be percent-encoded in a path.
fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}
