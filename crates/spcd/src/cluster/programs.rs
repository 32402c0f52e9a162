//! Finds the server's programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ClusterError;
use super::layout::{Layout, failed};

/// Oldest supported major version.
const MIN_VERSION: u32 = 14;

/// Programs of one installed version.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Major version: 15 for 15.8.
    pub major: u32,
    /// Directory of the programs.
    pub bindir: PathBuf,
}

/// Returns whether a server seems to be installed, without running a program.
pub fn are_installed() -> bool {
    let debian = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs =
        (debian.map(|entry| entry.path().join("bin"))).chain(std::env::split_paths(&path));
    dirs.any(|dir| dir.join("initdb").exists()) || !installed().is_empty()
}

impl Programs {
    /// Returns the programs of the data's version; for a new cluster, the preferred ones.
    pub fn find(layout: &Layout) -> Result<Self, ClusterError> {
        let version_file = layout.data.join("PG_VERSION");
        let required = match fs::read_to_string(&version_file) {
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
        choose(&found, required).cloned().ok_or_else(|| {
            let (place, is_gateway) = (layout.shown(), layout.is_gateway);
            ClusterError::Programs(missing(&found, required, &place, is_gateway))
        })
    }
}

/// Returns the programs of a version; for a new cluster, the first supported ones.
fn choose(found: &[Programs], required: Option<u32>) -> Option<&Programs> {
    found.iter().find(|programs| match required {
        Some(major) => programs.major == major,
        None => programs.major >= MIN_VERSION,
    })
}

/// Returns the message about programs that are not installed.
fn missing(found: &[Programs], required: Option<u32>, place: &str, is_gateway: bool) -> String {
    let versions: Vec<String> = found.iter().map(|found| found.major.to_string()).collect();
    let versions = match versions.is_empty() {
        true => "none".to_owned(),
        false => versions.join(", "),
    };
    if let Some(major) = required {
        return format!(
            "the private cluster in {place} belongs to Postgres {major}, whose server is not installed (installed: {versions}); install it (apt-get install postgresql-{major})"
        );
    }
    let instead = match is_gateway {
        true => "set `gateway` to the URL of a database, or to \"off\"",
        false => "give --database",
    };
    format!(
        "no Postgres server from {MIN_VERSION} on is installed, which the private cluster needs; install it (apt-get install postgresql), or {instead}"
    )
}

/// Returns all installed versions in order of preference: that of `pg_config`, Debian's from the newest
/// on, then that in `PATH`.
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

/// Parses the major version of `postgres (PostgreSQL) 15.8 (Debian …)`.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(majors: &[u32]) -> Vec<Programs> {
        let of = |major: &u32| Programs {
            major: *major,
            bindir: PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
        };
        majors.iter().map(of).collect()
    }

    #[test]
    fn data_needs_its_own_version_and_a_new_cluster_one_that_is_new_enough() {
        let found = programs(&[13, 17, 15]);
        let major = |required| choose(&found, required).map(|programs| programs.major);
        assert_eq!(major(None), Some(17));
        assert_eq!(major(Some(15)), Some(15));
        assert_eq!(major(Some(16)), None);
        assert!(choose(&programs(&[13]), None).is_none());
    }

    #[test]
    fn missing_programs_are_told_with_what_to_do() {
        let text = missing(&programs(&[13]), None, "/x", true);
        assert!(text.contains("no Postgres server from 14 on"), "{text}");
        assert!(text.contains("apt-get install postgresql"), "{text}");
        assert!(text.contains("`gateway` to the URL"), "{text}");
        let text = missing(&[], None, "/x", false);
        assert!(text.ends_with("or give --database"), "{text}");
        let text = missing(&[], Some(16), "/x", true);
        assert!(text.contains("Postgres 16, whose server is not installed (installed: none)"));
    }
}
