//! The server's programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ClusterError;
use super::layout::{Layout, failed};

/// What spcd uses of Postgres is in every version from here on.
const OLDEST: u32 = 14;

/// The programs of one version.
#[derive(Debug, Clone)]
pub struct Programs {
    /// 15 for 15.8.
    pub major: u32,
    /// Where they are.
    pub bindir: PathBuf,
}

impl Programs {
    /// Those that the data needs, or for a new cluster the best there are.
    pub fn find(layout: &Layout) -> Result<Self, ClusterError> {
        let version_file = layout.data.join("PG_VERSION");
        let wanted = match fs::read_to_string(&version_file) {
            Ok(text) => Some(text.trim().parse::<u32>().map_err(|_| {
                ClusterError::Programs(format!(
                    "{} does not hold a version; the cluster is damaged",
                    version_file.display()
                ))
            })?),
            Err(_) if !layout.data.exists() => None,
            Err(error) => return Err(failed("read", &version_file)(error)),
        };
        let found = installed();
        let versions = |found: &[Self]| {
            found
                .iter()
                .map(|found| found.major.to_string())
                .collect::<Vec<_>>()
                .join(", ")
        };
        match wanted {
            Some(major) => found.iter().find(|programs| programs.major == major).cloned().ok_or_else(|| {
                ClusterError::Programs(format!(
                    "the private cluster in {} belongs to Postgres {major}, whose server is not installed (installed: {}); install it (apt-get install postgresql-{major})",
                    layout.shown(),
                    if found.is_empty() { "none".to_owned() } else { versions(&found) }
                ))
            }),
            None => found.iter().find(|programs| programs.major >= OLDEST).cloned().ok_or_else(|| {
                ClusterError::Programs(format!(
                    "no Postgres server from {OLDEST} on is installed, which the private cluster needs; install it (apt-get install postgresql), or give --database"
                ))
            }),
        }
    }
}

/// Every server there is, the preferred one first: that of `pg_config`, then Debian's from the
/// newest on, then the one in `PATH`.
fn installed() -> Vec<Programs> {
    let of_config = Command::new("pg_config")
        .arg("--bindir")
        .stderr(Stdio::null())
        .output()
        .ok();
    let of_config =
        of_config.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let debian: BTreeMap<u32, PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin"),
            ))
        })
        .collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut programs: Vec<Programs> = Vec::new();
    for bindir in of_config
        .into_iter()
        .chain(debian.into_values().rev())
        .chain(std::env::split_paths(&path))
    {
        if !bindir.join("initdb").exists() || programs.iter().any(|known| known.bindir == bindir) {
            continue;
        }
        if let Some(major) = major_version(&bindir.join("postgres")) {
            programs.push(Programs { major, bindir });
        }
    }
    programs
}

/// From `postgres (PostgreSQL) 15.8 (Debian …)`.
fn major_version(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}
