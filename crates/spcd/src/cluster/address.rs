//! Addresses of a private cluster's server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::layout::Layout;
use super::{ClusterError, USER};
use crate::settings::Settings;
use spcd_postgres::connection::Endpoint;

/// Where sessions with the running server are had.
///
/// # Errors
/// When there is no cluster yet.
pub fn endpoint(settings: &Settings) -> Result<Endpoint, ClusterError> {
    let layout = Layout::of(settings).left();
    endpoint_of(&layout, port(&layout)?)
}

/// Returns the options by which a server of postgres_fdw leads to the cluster over TCP.
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

/// The hub's URL for other programs, without starting anything. The password is in the file that
/// it names.
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

/// Like [`url`], with the password in it. A driver that does not use libpq, such as node-postgres,
/// knows no `passfile`.
///
/// # Errors
/// When there is no cluster yet, or its password cannot be read.
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
                "there is no private cluster in {} yet; `spcd run` makes it, or give --database",
                layout.shown()
            ))
        })
}

/// By the socket where its path is short enough, else by TCP.
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

/// Everything but letters, digits and what is harmless in a path.
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
