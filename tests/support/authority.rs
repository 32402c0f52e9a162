//! Certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use super::{Cluster, fresh_dir};

/// A certificate authority and what it signs, made by openssl.
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// One of its own, with a key of its own.
    pub fn new() -> Self {
        let authority = Self {
            dir: fresh_dir("ca"),
        };
        authority.self_signed("ca", "CN=test authority", &[]);
        authority
    }

    /// A file of it.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl")
            .args(args)
            .current_dir(&self.dir)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// `openssl req -x509` marks it as an authority.
    pub fn self_signed(&self, name: &str, subject: &str, more: &[&str]) {
        let (key, cert, subject) = (
            format!("{name}.key"),
            format!("{name}.crt"),
            format!("/{subject}"),
        );
        let args = [
            "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-keyout", &key, "-out", &cert,
            "-subj", &subject,
        ];
        self.openssl(&[&args[..], more].concat());
        self.close(&key);
    }

    /// A certificate with these extensions; none makes one of version 1.
    pub fn signed(&self, name: &str, subject: &str, extensions: &str, days: &str) {
        let (key, request, cert) = (
            format!("{name}.key"),
            format!("{name}.csr"),
            format!("{name}.crt"),
        );
        let subject = format!("/{subject}");
        self.openssl(&[
            "req", "-newkey", "rsa:2048", "-noenc", "-keyout", &key, "-out", &request, "-subj",
            &subject,
        ]);
        let args = [
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            &cert,
            "-days",
            days,
        ];
        let file = format!("{name}.ext");
        if extensions.is_empty() {
            self.openssl(&args);
        } else {
            fs::write(self.dir.join(&file), extensions).unwrap();
            self.openssl(&[&args[..], &["-extfile", &file]].concat());
        }
        self.close(&key);
    }

    /// The same, valid only in a January long ago.
    pub fn expire(&self, name: &str) {
        let conf = "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nrand_serial=yes\nnew_certs_dir=.\n\
                    certificate=ca.crt\nprivate_key=ca.key\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n";
        fs::write(self.dir.join("ca.cnf"), conf).unwrap();
        fs::write(self.dir.join("index.txt"), "").unwrap();
        let (request, cert, ext) = (
            format!("{name}.csr"),
            format!("{name}.crt"),
            format!("{name}.ext"),
        );
        let dates = [
            "-startdate",
            "20200101000000Z",
            "-enddate",
            "20200201000000Z",
        ];
        let args = [
            "ca", "-batch", "-notext", "-config", "ca.cnf", "-in", &request, "-out", &cert,
            "-extfile", &ext,
        ];
        self.openssl(&[&args[..], &dates].concat());
    }

    fn close(&self, key: &str) {
        fs::set_permissions(self.dir.join(key), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// A server with one of the certificates.
    pub fn server(&self, name: &str, hba: &str) -> Cluster {
        let mut cluster = Cluster::stopped(&["log_connections = on"]);
        for (file, from) in [
            ("server.crt", format!("{name}.crt")),
            ("server.key", format!("{name}.key")),
            ("root.crt", "ca.crt".to_owned()),
        ] {
            let path = cluster.write(file, &fs::read_to_string(self.dir.join(from)).unwrap());
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        cluster.write(
            "pg_hba.conf",
            &format!("{hba}local all postgres trust\nhost all postgres 127.0.0.1/32 trust\n"),
        );
        cluster.configure(&["ssl = on", "ssl_ca_file = 'root.crt'"]);
        cluster.start_again();
        cluster
    }
}
