//! One directory a run of the tests, and a watcher that clears up behind it however it ends.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::{Gid, Uid, User};

/// In the environment of every daemon that a test starts, so that the watcher knows them.
pub const MARK: &str = "SPCD_TESTS_RUN";

/// Waits until the tests are gone, also by SIGKILL: its standard input then ends. What it ends is
/// known by the mark in its environment, or by its pid file below the run's directory.
const WATCHER: &str = r#"
run=$1 mark=$2
cat >/dev/null
for dir in /proc/[0-9]*; do
    if tr '\0' '\n' <"$dir/environ" 2>/dev/null | grep -qx "$mark=$run"; then
        kill -9 "${dir#/proc/}" 2>/dev/null
    fi
done
find "$run" -name postmaster.pid 2>/dev/null | while read -r file; do
    kill -QUIT "$(head -n 1 "$file")" 2>/dev/null
done
grep -o " $run/[^ ]* tmpfs " /proc/mounts | while read -r dir type; do
    umount -l "$dir"
done
for i in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$run" 2>/dev/null && break
    sleep 0.2
done
"#;

struct Run {
    dir: PathBuf,
    owner: Option<User>,
    /// Held open: its end is what the watcher waits for.
    _watcher: Child,
}

static RUN: OnceLock<Run> = OnceLock::new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A new directory that only this call knows, removed when the tests end. The server's user owns it.
pub fn fresh_dir(prefix: &str) -> PathBuf {
    let run = run();
    let dir = run
        .dir
        .join(format!("{prefix}{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir(&dir).unwrap();
    give_to_server(&dir);
    dir
}

/// The path that marks this run's processes.
pub fn mark() -> PathBuf {
    run().dir.clone()
}

/// User of the servers; `None` for the user who runs the tests. Postgres refuses root.
pub fn server_user() -> Option<(Uid, Gid)> {
    run().owner.as_ref().map(|user| (user.uid, user.gid))
}

/// Name of the user of the servers.
pub fn server_user_name() -> String {
    let uid = server_user().map_or_else(nix::unistd::geteuid, |(uid, _)| uid);
    User::from_uid(uid)
        .unwrap()
        .expect("a user with a name")
        .name
}

/// Lets a command run as the server's user.
pub fn as_server_user(command: &mut Command) -> &mut Command {
    if let Some((uid, gid)) = server_user() {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    command
}

/// Makes a file or directory the server's user's own.
pub fn give_to_server(path: &Path) {
    if let Some((uid, gid)) = server_user() {
        chown(path, Some(uid.as_raw()), Some(gid.as_raw())).unwrap();
    }
}

fn run() -> &'static Run {
    RUN.get_or_init(|| {
        let owner = nix::unistd::geteuid().is_root().then(|| {
            ["postgres", "nobody"]
                .into_iter()
                .find_map(|name| User::from_name(name).ok().flatten())
                .expect("a user that may run Postgres: postgres or nobody")
        });
        let dir = std::env::temp_dir().join(format!("spcd-tests-{}", std::process::id()));
        // What an earlier process of the same number left, if its watcher was killed too.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let watcher = Command::new("sh")
            .args(["-c", WATCHER, "watcher"])
            .arg(&dir)
            .arg(MARK)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Away from the terminal's Ctrl-C, which must end the tests first.
            .process_group(0)
            .spawn()
            .unwrap();
        Run {
            dir,
            owner,
            _watcher: watcher,
        }
    })
}
