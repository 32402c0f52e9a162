//! Who may read a file, and what is in the way.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

/// Whom a process is to the file system.
#[derive(Debug)]
pub struct Who {
    user: u32,
    groups: Vec<u32>,
}

const READ: u32 = 0o4;
const PASS: u32 = 0o1;

impl Who {
    /// This process.
    pub fn me() -> Option<Self> {
        Self::of("self")
    }

    /// A server's process, if it runs on this host.
    pub fn of_server(pid: i32) -> Option<Self> {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        name.starts_with("postgres")
            .then(|| Self::of(&pid.to_string()))?
    }

    fn of(process: &str) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let numbers = |key: &str| -> Option<Vec<u32>> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().map(|n| n.parse().ok()).collect()
        };
        // Real, effective, saved, and the one for files.
        let user = *numbers("Uid:")?.last()?;
        let mut groups = numbers("Groups:")?;
        groups.push(*numbers("Gid:")?.last()?);
        Some(Self { user, groups })
    }

    /// The user's name in quotes, or its number.
    pub fn name(&self) -> String {
        match User::from_uid(Uid::from_raw(self.user)) {
            Ok(Some(user)) => format!("{:?}", user.name),
            _ => self.user.to_string(),
        }
    }

    /// What keeps the user from reading a file, or from listing a directory.
    pub fn lacks(&self, path: &Path) -> Option<String> {
        if self.user == 0 {
            return None;
        }
        // As far as it can be followed by us.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut way: Vec<PathBuf> = path.ancestors().map(Path::to_owned).collect();
        way.reverse();
        for step in &way {
            let Ok(found) = fs::metadata(step) else {
                return None;
            };
            let (wanted, what) = match (step == &path, found.is_dir()) {
                (true, true) => (READ | PASS, "list the directory"),
                (true, false) => (READ, "read"),
                (false, _) => (PASS, "pass through the directory"),
            };
            let shift = match found.uid() == self.user {
                true => 6,
                false if self.groups.contains(&found.gid()) => 3,
                false => 0,
            };
            if (found.mode() >> shift) & wanted != wanted {
                return Some(format!(
                    "the user {} may not {what} {} (mode {:o})",
                    self.name(),
                    step.display(),
                    found.mode() & 0o7777
                ));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (sub, file) = (dir.path().join("sub"), dir.path().join("sub/a.csv"));
        fs::create_dir(&sub).unwrap();
        fs::write(&file, "a\n").unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(dir.path(), 0o755);
        mode(&sub, 0o755);
        mode(&file, 0o640);
        let found = fs::metadata(&file).unwrap();
        let other = Who {
            user: found.uid() + 54321,
            groups: vec![found.gid() + 54321],
        };
        let real = file.canonicalize().unwrap();
        let wanted = format!(
            "the user {} may not read {} (mode 640)",
            other.user,
            real.display()
        );
        assert_eq!(other.lacks(&file), Some(wanted));
        let group = Who {
            user: other.user,
            groups: vec![found.gid()],
        };
        assert_eq!(group.lacks(&file), None);
        mode(&sub, 0o700);
        let told = group.lacks(&file).unwrap();
        assert!(
            told.contains("may not pass through the directory"),
            "{told}"
        );
        assert!(told.ends_with("/sub (mode 700)"), "{told}");
        assert!(Who::me().is_some_and(|me| me.lacks(&file).is_none()));
    }
}
