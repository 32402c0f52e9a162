//! Permissions of processes to read files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

/// User and groups of a process.
#[derive(Debug)]
pub struct FileAccessor {
    user: u32,
    groups: Vec<u32>,
}

const READ_BIT: u32 = 0o4;
const SEARCH: u32 = 0o1;

impl FileAccessor {
    /// Returns the user of this process.
    pub fn current_process() -> Option<Self> {
        Self::from_process("self")
    }

    /// Returns the user of a server process if it runs on this host.
    pub fn server_process(pid: i32) -> Option<Self> {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        name.starts_with("postgres")
            .then(|| Self::from_process(&pid.to_string()))?
    }

    fn from_process(process: &str) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let numbers = |key: &str| -> Option<Vec<u32>> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().map(|n| n.parse().ok()).collect()
        };
        // Real, effective, saved and file system IDs.
        let user = *numbers("Uid:")?.last()?;
        let mut groups = numbers("Groups:")?;
        groups.push(*numbers("Gid:")?.last()?);
        Some(Self { user, groups })
    }

    /// Returns the user's name in quotes, or its number.
    pub fn user_name(&self) -> String {
        match User::from_uid(Uid::from_raw(self.user)) {
            Ok(Some(user)) => format!("{:?}", user.name),
            _ => self.user.to_string(),
        }
    }

    /// Describes the permission that the user lacks to read a file or list a directory.
    pub fn missing_permission(&self, path: &Path) -> Option<String> {
        if self.user == 0 {
            return None;
        }
        // This process may be unable to resolve all of the path.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut ancestors: Vec<PathBuf> = path.ancestors().map(Path::to_owned).collect();
        ancestors.reverse();
        for ancestor in &ancestors {
            let Ok(found) = fs::metadata(ancestor) else {
                return None;
            };
            let (required, action) = match (ancestor == &path, found.is_dir()) {
                (true, true) => (READ_BIT | SEARCH, "list the directory"),
                (true, false) => (READ_BIT, "read"),
                (false, _) => (SEARCH, "pass through the directory"),
            };
            let shift = match found.uid() == self.user {
                true => 6,
                false if self.groups.contains(&found.gid()) => 3,
                false => 0,
            };
            if (found.mode() >> shift) & required != required {
                return Some(format!(
                    "the user {} may not {action} {} (mode {:o})",
                    self.user_name(),
                    ancestor.display(),
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
    fn the_missing_permission_is_named() {
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
        let other = FileAccessor {
            user: found.uid() + 54321,
            groups: vec![found.gid() + 54321],
        };
        let real = file.canonicalize().unwrap();
        let expected = format!(
            "the user {} may not read {} (mode 640)",
            other.user,
            real.display()
        );
        assert_eq!(other.missing_permission(&file), Some(expected));
        let group = FileAccessor {
            user: other.user,
            groups: vec![found.gid()],
        };
        assert_eq!(group.missing_permission(&file), None);
        mode(&sub, 0o700);
        let text = group.missing_permission(&file).unwrap();
        assert!(
            text.contains("may not pass through the directory"),
            "{text}"
        );
        assert!(text.ends_with("/sub (mode 700)"), "{text}");
        assert!(
            FileAccessor::current_process()
                .is_some_and(|me| me.missing_permission(&file).is_none())
        );
    }
}
