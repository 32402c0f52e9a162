//! `spcd man`: the manual pages, for the package.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory;

use super::{Cli, ManArgs};

/// End of each page.
const END: &str = "\\
.SH ENVIRONMENT
Each long option can also be given as a variable:
.B SPCD_DATABASE
for
.BR \\-\\-database ,
.B SPCD_STATE_DIR
for
.BR \\-\\-state\\-dir .
Flags come before the environment, and that before
.IR spcd.hcl .
.SH FILES
.I /etc/spcd/conf.d
and
.IR /etc/spcd/spcd.hcl ,
.I /var/lib/spcd
for root and for the service; the XDG directories for people.
.SH SEE ALSO
.BR spcd (1),
and the pages in
.I /usr/share/doc/spcd
";

/// Writes a page for the program and one for each command.
pub fn run(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let mut all = Cli::command();
    all.build();
    write(&args.dir, &all)?;
    for command in all
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        if command.get_name() != "help" {
            write(&args.dir, command)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write(dir: &Path, command: &clap::Command) -> anyhow::Result<()> {
    // `spcd wait` is described by spcd-wait(1).
    let name = command.get_bin_name().unwrap_or("spcd").replace(' ', "-");
    let path = dir.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name)
        .source(concat!("spcd ", env!("CARGO_PKG_VERSION")))
        .render(&mut page)?;
    page.extend_from_slice(END.as_bytes());
    std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}
