//! nginx before the daemon, as the documentation has it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use super::source;
use crate::support::authority::Authority;
use crate::support::http::{events, send};
use crate::support::hub::postgres;
use crate::support::nginx::Nginx;
use crate::support::{Spcd, eventually_now, free_port, give_to_server, shared};

const NAME: &str = "spcd.example.com";
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));

#[tokio::test(flavor = "multi_thread")]
async fn nginx_gives_it_to_a_network_over_tls() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    // What the section says belongs into spcd.hcl.
    let documentation = include_str!("../../docs/api.md");
    let (_, section) = documentation.split_once("## Behind a proxy\n").unwrap();
    let (_, block) = section.split_once("```hcl\n").unwrap();
    let (settings, _) = block.split_once("```").unwrap();
    fs::write(spcd.dir().join("spcd.hcl"), settings).unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let token = spcd.dir().join("token");
    fs::write(&token, "s3cret").unwrap();
    spcd.env("SPCD_HTTP", &address)
        .env("SPCD_HTTP_TOKEN_FILE", &token.display().to_string());
    spcd.start();
    eventually_now("the daemon answers", || {
        std::net::TcpStream::connect(&address).ok()
    });

    let authority = Authority::new();
    let names = format!("subjectAltName=DNS:{NAME}\n");
    authority.signed("server", "CN=spcd", &names, "10");
    let (certificate, key) = (authority.path("server.crt"), authority.path("server.key"));
    give_to_server(key.as_ref());
    let port = free_port();
    // Nothing but ports, paths and addresses are others.
    let replaced = [
        ("listen 443 ssl;", format!("listen 127.0.0.1:{port} ssl;")),
        ("/etc/ssl/certs/spcd.example.com.pem", certificate),
        ("/etc/ssl/private/spcd.example.com.key", key),
        ("127.0.0.1:7733", address),
        ("10.0.0.0/8", format!("{HERE}/32")),
    ];
    let mut site = include_str!("../../config/nginx/spcd.conf").to_owned();
    for (shown, real) in replaced {
        assert!(site.contains(shown), "{shown}");
        site = site.replace(shown, &real);
    }
    let nginx = Nginx::start(&site, port);
    let to_nginx = |from| nginx.connect(from, NAME, &authority.path("ca.crt"));
    let host = format!("Host: {NAME}");
    let get = |path: &str| send(to_nginx(HERE), "GET", path, &[&host]);

    let page = get("/");
    assert!(
        page.status == 200 && page.body.contains("<title>spcd</title>"),
        "{page:?}"
    );
    assert!(page.header("content-security-policy").is_some(), "{page:?}");
    eventually_now("the list is there", || {
        (get("/api/v1/connections").status == 200).then_some(())
    });
    // A stream's first bytes come while it is open, and each event as it happens.
    let mut stream = events(to_nginx(HERE), "", &[&host]);
    stream.until("it is open", |event| event.kind == "open");
    spcd.write("a.spc", &postgres("a", &source));
    stream.until("it is ready", |event| event.data["status"] == "ready");
    assert_eq!(
        get("/api/v1/connections").json()["connections"][0]["connection_name"],
        "a"
    );

    let post = |head: &[&str]| {
        let head = [&[host.as_str()], head].concat();
        send(
            to_nginx(HERE),
            "POST",
            "/api/v1/connections/a/refresh",
            &head,
        )
    };
    let token = "Authorization: Bearer s3cret";
    let origin = format!("Origin: https://{NAME}");
    assert_eq!(post(&[]).status, 401);
    assert_eq!(post(&[token, &origin]).status, 202);
    assert_eq!(post(&[token, "Origin: https://evil.example"]).status, 403);

    // Neither another name nor a client from another network gets through.
    let foreign = send(
        to_nginx(HERE),
        "GET",
        "/api/v1/connections",
        &["Host: evil.example"],
    );
    assert_eq!(foreign.status, 421, "{foreign:?}");
    for path in ["/", "/api/v1/connections", "/api/v1/events"] {
        let stranger = send(to_nginx(ELSEWHERE), "GET", path, &[&host]);
        assert_eq!(stranger.status, 403, "{path}: {stranger:?}");
    }
    spcd.stop();
}
