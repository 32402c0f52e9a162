//! nginx, run by an unprivileged user, with what a site's file says.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::run::{MARK, as_server_user, fresh_dir, mark};
use super::{DEADLINE, eventually_now};

/// A running server. Dropping it ends it.
pub struct Nginx {
    dir: PathBuf,
    port: u16,
    server: Child,
}

impl Nginx {
    /// With the text of a site, which listens on `127.0.0.1` at this port.
    pub fn start(site: &str, port: u16) -> Self {
        let dir = fresh_dir("nginx");
        fs::write(dir.join("site.conf"), site).unwrap();
        let kept: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("{what}_temp_path {}/{what};\n", dir.display()))
            .collect();
        // One process, so that it ends with the test.
        let config = format!(
            "daemon off;\nmaster_process off;\npid {0}/pid;\nerror_log stderr info;\nevents {{}}\n\
             http {{\naccess_log off;\n{kept}include {0}/site.conf;\n}}\n",
            dir.display()
        );
        fs::write(dir.join("nginx.conf"), config).unwrap();
        let log = File::create(dir.join("log")).unwrap();
        let mut command = Command::new(program());
        command
            .arg("-p")
            .arg(&dir)
            .args(["-e", "stderr", "-c"])
            .arg(dir.join("nginx.conf"))
            .env(MARK, mark())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let server = as_server_user(&mut command)
            .spawn()
            .expect("nginx (scripts/lib.sh: need_nginx)");
        let mut nginx = Self { dir, port, server };
        eventually_now("nginx listens", || {
            let ended = nginx.server.try_wait().unwrap();
            assert!(ended.is_none(), "nginx does not start: {}", nginx.log());
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        nginx
    }

    /// A connection over TLS from an address of this machine, to the server by its name, which must
    /// have a certificate that comes from this authority.
    pub fn connect(
        &self,
        from: IpAddr,
        name: &str,
        authority: &str,
    ) -> StreamOwned<ClientConnection, TcpStream> {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from, 0)).unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], self.port));
        let runtime = tokio::runtime::Handle::current();
        let stream = tokio::task::block_in_place(|| runtime.block_on(socket.connect(to)));
        let stream = stream.unwrap().into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(authority).unwrap();
        roots.add(root).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        StreamOwned::new(
            ClientConnection::new(Arc::new(config), name).unwrap(),
            stream,
        )
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of nginx\n{}", self.log());
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The one that scripts/lib.sh unpacked, or Debian's.
fn program() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let unpacked = target.join("nginx/usr/sbin/nginx");
    unpacked.canonicalize().unwrap_or("/usr/sbin/nginx".into())
}
