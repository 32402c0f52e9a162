//! The wrapper `script_fdw` of tests/wrappers, whose imports do what a file says.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use spcd_core::sql;

use super::{fresh_dir, give_to_server, query};

/// The file that a hub's wrapper `script` reads.
pub struct Script {
    path: PathBuf,
}

impl Script {
    /// Makes the wrapper in a hub's database.
    ///
    /// # Panics
    /// When its library was not built (`scripts/lib.sh`: `need_c_wrappers`).
    pub async fn wrapper(hub: &str) -> Self {
        let dir = fresh_dir("script");
        let built =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/wrappers/script_fdw.so");
        // The server's user may not reach the directory of the sources.
        let library = dir.join("script_fdw.so");
        std::fs::copy(&built, &library)
            .unwrap_or_else(|error| panic!("{}: {error} (scripts/test.sh)", built.display()));
        give_to_server(&library);
        let create = format!(
            "CREATE FUNCTION public.script_fdw_handler() RETURNS fdw_handler LANGUAGE C STRICT
                 AS {}, 'script_fdw_handler';
             CREATE FOREIGN DATA WRAPPER script HANDLER public.script_fdw_handler NO VALIDATOR",
            sql::literal(library.to_str().unwrap())
        );
        query(hub, &create).await;
        let script = Self {
            path: dir.join("import"),
        };
        script.says("");
        script
    }

    /// From now on an import does what these lines say.
    pub fn says(&self, lines: &str) {
        // By renaming, so that a pipe is replaced; one that an import waits for ends.
        let waited_for = std::fs::File::options()
            .write(true)
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(&self.path);
        let new = self.path.with_extension("new");
        std::fs::write(&new, lines).unwrap();
        give_to_server(&new);
        std::fs::rename(&new, &self.path).unwrap();
        drop(waited_for);
    }

    /// From now on an import waits, until [`Script::says`] is called.
    pub fn says_nothing_yet(&self) {
        std::fs::remove_file(&self.path).unwrap();
        nix::unistd::mkfifo(&self.path, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
        give_to_server(&self.path);
    }

    /// A plugin `script`, with more attributes, and a connection of it.
    pub fn connection(&self, name: &str, more: &str) -> String {
        format!(
            "plugin \"script\" {{\n  extension = \"plpgsql\"\n  wrapper = \"script\"\n  \
             server = [\"file\"]\n  schema_mode = \"dynamic\"\n  probe = \"none\"\n{more}}}\n\
             connection \"{name}\" {{\n  plugin = \"script\"\n  file = {}\n}}\n",
            serde_json::to_string(&self.path).unwrap()
        )
    }
}
