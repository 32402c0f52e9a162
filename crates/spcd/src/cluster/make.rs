//! Creates a cluster, resets its password, and writes its configuration.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;

use super::layout::{Layout, failed, last_lines};
use super::owner::Owner;
use super::programs::Programs;
use super::{ClusterError, USER, new_password};
use spcd_postgres::gateway_reader::READER;

/// Creates the data directory atomically.
pub async fn init(layout: &Layout, owner: &Owner, programs: &Programs) -> Result<(), ClusterError> {
    let new = layout.dir.join("data.new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(failed("remove the incomplete", &new))?;
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&new)
        .map_err(failed("create the directory", &new))?;
    owner
        .give(&new)
        .map_err(failed("give to the server's user", &new))?;
    let password = new_password().map_err(failed("read", Path::new("/dev/urandom")))?;
    // Stored before the rename: a data directory without a known password would be unusable.
    layout.remember_password(&password)?;
    let pwfile = layout.dir.join("initdb.password");
    let _ = fs::remove_file(&pwfile);
    let written = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&pwfile)
        .and_then(|mut file| std::io::Write::write_all(&mut file, password.expose().as_bytes()))
        .and_then(|()| owner.give(&pwfile));
    let mut command = owner.command(&programs.bindir.join("initdb"));
    command
        .arg(format!("--username={USER}"))
        .arg("--pwfile")
        .arg(&pwfile)
        .args([
            "--auth=scram-sha-256",
            "--data-checksums",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-instructions",
        ])
        .arg("--pgdata")
        .arg(&new);
    let output = match written {
        Ok(()) => tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap_or_else(|error| Err(error.into())),
        Err(error) => Err(error),
    };
    let _ = fs::remove_file(&pwfile);
    let output = output.map_err(failed("run initdb for", &layout.dir))?;
    if !output.status.success() {
        let output = last_lines(&String::from_utf8_lossy(&output.stderr));
        let _ = fs::remove_dir_all(&new);
        return Err(ClusterError::Failed {
            what: format!(
                "initdb cannot create a private cluster in {}{}",
                layout.shown(),
                layout.disk()
            ),
            output,
        });
    }
    fs::rename(&new, &layout.data)
        .and_then(|()| File::open(&layout.dir)?.sync_all())
        .map_err(failed("put in place", &layout.data))
}

/// Sets a new password of the superuser. No server may run.
pub async fn renew_password(
    layout: &Layout,
    owner: &Owner,
    programs: &Programs,
) -> Result<(), ClusterError> {
    let password = new_password().map_err(failed("read", Path::new("/dev/urandom")))?;
    layout.write("postgresql.conf", &configuration(layout), 0o644)?;
    let mut command = owner.command(&programs.bindir.join("postgres"));
    command
        .arg("--single")
        .arg("-D")
        .arg(&layout.data)
        // The statement contains the password: it must not be logged.
        .args([
            "-c",
            "log_statement=none",
            "-c",
            "log_min_error_statement=panic",
            "-c",
            "logging_collector=off",
            "-c",
        ])
        .arg(format!(
            "config_file={}",
            layout.dir.join("postgresql.conf").display()
        ))
        .arg("postgres")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let sql = format!("ALTER ROLE {USER} PASSWORD '{}';\n", password.expose());
    let run = move || {
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            std::io::Write::write_all(&mut input, sql.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = tokio::task::spawn_blocking(run)
        .await
        .unwrap_or_else(|error| Err(error.into()))
        .map_err(failed("run postgres --single for", &layout.dir))?;
    if !output.status.success() {
        return Err(ClusterError::Failed {
            what: format!(
                "cannot set a new password for the private cluster in {}{}",
                layout.shown(),
                layout.disk()
            ),
            output: last_lines(&String::from_utf8_lossy(&output.stderr)),
        });
    }
    layout.remember_password(&password)
}

/// Settings for many foreign tables. `ALTER SYSTEM` overrides them.
pub fn configuration(layout: &Layout) -> String {
    format!(
        "\
# ConfigSnapshot by spcd at each start; change settings with ALTER SYSTEM.
max_connections = 100
# A transaction locks each table that it makes once, and each that it drops three times; a query
# over an aggregator locks the tables of all members. This makes 51,200 locks, for 17,000 tables
# dropped at once, and takes 20 MB more than the usual 64, which give out at 4,100.
max_locks_per_transaction = 512
# Foreign scans gain nothing from it, and plans over many tables lose seconds.
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
password_encryption = 'scram-sha-256'
unix_socket_permissions = 0700
hba_file = '{hba}'
ident_file = '{data}/pg_ident.conf'
# One file a weekday, so that a week is kept and the disk does not fill.
logging_collector = on
log_directory = 'log'
log_filename = 'postgresql-%a.log'
log_truncate_on_rotation = on
log_rotation_age = 1d
log_rotation_size = 0
log_line_prefix = '%m [%p] %q%u@%d %a '
{more}",
        data = quoted(&layout.data),
        hba = quoted(&layout.hba_file()),
        more = gateway_configuration(layout),
    )
}

fn quoted(path: &Path) -> String {
    path.display().to_string().replace('\'', "''")
}

/// Settings of a gateway, whose only tables are spcd's own, and TLS if it listens for a hub on another
/// machine.
fn gateway_configuration(layout: &Layout) -> String {
    let mut text = String::new();
    if layout.is_gateway {
        text.push_str("shared_buffers = '16MB'\n");
    }
    if layout.listen.is_some() {
        let [certificate, key] = layout.tls_files();
        text.push_str(&format!(
            "ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\n",
            quoted(&certificate),
            quoted(&key)
        ));
    }
    text
}

/// Writes the files of a server that listens for a hub on another machine: `pg_hba.conf`, and copies of
/// the certificate and its key that the server's user can read.
pub fn prepare_listen(layout: &Layout, owner: &Owner) -> Result<(), ClusterError> {
    let Some(listen) = &layout.listen else {
        return Ok(());
    };
    let hba = format!(
        "# Written by spcd at each start.\n\
         local all all scram-sha-256\n\
         host all all 127.0.0.1/32 scram-sha-256\n\
         host all all ::1/128 scram-sha-256\n\
         hostssl {} {READER} {} scram-sha-256\n",
        layout.database(),
        listen.hub_address
    );
    layout.write("pg_hba.conf", &hba, 0o644)?;
    for (from, to) in [&listen.tls_cert_file, &listen.tls_key_file]
        .into_iter()
        .zip(layout.tls_files())
    {
        let from = Path::new(from);
        let text = fs::read_to_string(from).map_err(failed("read", from))?;
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        layout.write(&name, &text, 0o600)?;
        owner
            .give(&to)
            .map_err(failed("give to the server's user", &to))?;
    }
    Ok(())
}
