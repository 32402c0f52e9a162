//! The page, in a browser.

mod away;
mod chromium;
pub mod fill;
mod hands;

use std::path::{Path, PathBuf};

use crate::support::hub::{self, postgres};
use crate::support::{Spcd, eventually_now, free_port, query, shared};
use chromium::{Chromium, Page};
use fill::Filled;

/// A daemon that a browser can reach.
fn served(hub: &str) -> (Spcd, String) {
    let mut spcd = Spcd::new(hub);
    let address = format!("127.0.0.1:{}", free_port());
    spcd.env("SPCD_HTTP", &address);
    (spcd, address)
}

/// The same with the token `s3cret`, so that the page offers actions.
fn served_with_token(hub: &str) -> (Spcd, String) {
    let (mut spcd, address) = served(hub);
    let token = spcd.dir().join("token");
    std::fs::write(&token, "s3cret").unwrap();
    spcd.env("SPCD_HTTP_TOKEN_FILE", token.to_str().unwrap());
    (spcd, address)
}

/// The page, with its first rows drawn.
fn opened(address: &str) -> Page {
    let page = Chromium::start().page();
    page.size(1280, 800);
    page.colours("light");
    reopen(&page, address);
    page
}

fn reopen(page: &Page, address: &str) {
    eventually_now("the daemon answers", || {
        std::net::TcpStream::connect(address).ok()
    });
    page.open(&format!("http://{address}/"));
    page.until("document.body?.dataset.ready === 'true'");
}

/// A row's texts as they are seen, by the connection's name.
fn row(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('.row')].find((row) => row.dataset.name === {})",
        serde_json::Value::from(name)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_in_the_files_changes_before_ones_eyes() {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let hub = shared().database().await;
    let (mut spcd, address) = served(&hub.url);
    spcd.write("one.spc", &postgres("one", &source));
    spcd.start();
    hub::until(&hub.url, &["one ready"]).await;
    let page = opened(&address);
    page.value("window.kept = 'the same page'");
    let status = |name: &str, status: &str| {
        let row = row(name);
        page.until(&format!("{row}?.children[0].textContent === '{status}'"));
    };
    status("one", "ready");
    page.until("document.querySelector('#live').dataset.state === 'on'");

    spcd.write("two.spc", &postgres("two", &source));
    status("two", "ready");
    page.until(&format!("{}.children[4].textContent === '1'", row("two")));
    // What is wrong shows in full where it is opened, with its place, and goes when it is mended.
    spcd.write(
        "two.spc",
        &postgres("two", &source).replace("dbname", "dbnam"),
    );
    status("two", "error");
    page.click("#filter");
    page.type_in("dbnam");
    page.until("document.querySelectorAll('.row').length === 1");
    page.press("ArrowDown");
    page.press("Enter");
    page.until("document.querySelector('.detail .text.wrong')?.textContent.includes('two.spc:5')");
    page.until("document.querySelector('.times li')?.dataset.status === 'error'");
    page.until("document.querySelector('.facts .place').textContent.includes('two.spc:1')");
    spcd.write("two.spc", &postgres("two", &source));
    page.until("document.querySelector('.detail .status').textContent === 'ready'");
    page.until("document.querySelector('.times li').dataset.status === 'ready'");
    page.until("document.querySelector('.detail .text') === null");

    // By keyboard alone: close, filter, open, close, take the filter back.
    page.press("Escape");
    page.until("document.querySelector('#detail').hidden");
    page.press("/");
    page.until("document.activeElement.id === 'filter'");
    page.type_in(" nothing");
    page.until("!document.querySelector('#empty').hidden");
    page.press("Escape");
    page.until("document.querySelectorAll('.row').length === 2");
    spcd.remove("two.spc");
    page.until(&format!("{} === undefined", row("two")));

    // Without a token nothing can be changed: the page says so and offers nothing.
    page.press("ArrowDown");
    page.press("Enter");
    page.until("document.querySelector('.told')?.textContent.includes('http_token_file')");
    assert_eq!(
        page.value("document.querySelectorAll('[data-verb]').length"),
        0
    );
    assert_eq!(page.value("window.kept"), "the same page");

    // The daemon goes and comes back: the page says so, and goes on.
    spcd.stop();
    page.until("document.querySelector('#live').dataset.state === 'off'");
    spcd.write("three.spc", &postgres("three", &source));
    spcd.start();
    status("three", "ready");
    page.until("document.querySelector('#live').dataset.state === 'on'");
    assert_eq!(page.value("window.kept"), "the same page");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_are_filtered_and_only_those_seen_are_there() {
    let filled = Filled::with(10_000).await;
    let (mut spcd, address) = served(&filled.hub.url);
    spcd.start();
    let page = opened(&address);
    let rows = "document.querySelectorAll('.row').length";
    let shown = "document.querySelector('#shown').textContent";
    page.until(&format!("{shown} === '10,000 connections'"));
    // Each turn in one go: what the script is asked between two is answered.
    let drawn = |page: &Page| page.value(rows).as_u64().unwrap();
    assert!((20..60).contains(&drawn(&page)), "{}", drawn(&page));
    page.click("#filter");
    for (typed, count) in [("sales_", 1000), ("eu_", 143), ("0070", 4)] {
        page.type_in(typed);
        let counted = page.value("(async () => {
                const words = document.querySelector('#filter').value.split(' ').filter(Boolean);
                const { connections } = await (await fetch('/api/v1/connections')).json();
                return connections.filter((row) => words.every((word) => row.connection_name.includes(word))).length;
            })()");
        page.type_in(" ");
        let wanted = counted.as_u64().unwrap();
        assert!(wanted > 0 && wanted <= count, "{typed}: {wanted}");
        page.until(&format!("{shown} === '{} of 10,000'", grouped(wanted)));
        page.until(&format!("{rows} === Math.min({wanted}, {rows})"));
        assert!(drawn(&page) < 60, "{}", drawn(&page));
    }
    page.press("Escape");
    page.until(&format!("{shown} === '10,000 connections'"));
    // By name, from the first to the last, one screen at a time at most.
    page.click("#head > :nth-child(2) button");
    page.press("Escape");
    page.value("document.querySelector('#grid').focus()");
    page.press("End");
    page.until("document.querySelector('.row[aria-selected=true]')?.getAttribute('aria-rowindex') === '10001'");
    page.until(
        "document.querySelector('.row[aria-selected=true]').dataset.name.startsWith('wiki_us')",
    );
    assert!(drawn(&page) < 60, "{}", drawn(&page));
    page.press("Home");
    page.until(
        "document.querySelector('.row[aria-selected=true]')?.dataset.name.startsWith('audit_apac')",
    );

    // A thousand changes at once are one list.
    filled
        .run(
            "WITH c AS (SELECT jsonb_agg(jsonb_build_object('name', connection_name, 'route', jsonb_build_array('updating', 'ready'))) AS c
                        FROM (SELECT connection_name FROM spcd.connection_state WHERE status = 'error' AND connection_name LIKE '%') s)
             SELECT spcd.publish(1, c) FROM c",
        )
        .await;
    page.until("document.querySelector('#counts [data-status=error]') === null");
    assert_eq!(page.complaints(), [""; 0]);
    spcd.stop();
}

fn grouped(number: u64) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", number / 1000, number % 1000),
    }
}

/// Texts that would be more than texts, were they ever read as anything else.
const HOSTILE: [&str; 6] = [
    "<img src=x onerror=\"window.pwned=1\">",
    "<script>window.pwned=1</script>",
    "\"><svg onload=window.pwned=1>",
    "javascript:window.pwned=1//%0awindow.pwned=1",
    "{{constructor.constructor('window.pwned=1')()}}",
    "\u{202e}gnirts\u{0301}</title></textarea><iframe srcdoc='<script>parent.pwned=1</script>'>",
];

async fn hostile() -> Filled {
    let filled = Filled::with(12).await;
    let long = "w".repeat(400);
    for (n, text) in HOSTILE.iter().enumerate() {
        // The key takes 63 bytes of it; the rest all.
        let name = spcd_core::sql::literal(&text.chars().take(40).collect::<String>());
        let text = spcd_core::sql::literal(text);
        filled
            .run(&format!(
                "INSERT INTO spcd.connection_state (connection_name, status, error, warnings, plugin, plugin_instance,
                     type, connections, import_schema, file_name, start_line, generation, labels, table_count)
                 VALUES ({name}, 'error', {text} || '{long}', ARRAY[{text}, '{long}'], {text}, {text}, 'aggregator',
                     ARRAY[{text}, '{long}'], 'enabled', {text}, {n}, 1, jsonb_build_object({text}, {text}, 'k', '{long}'), 2147483647);
                 INSERT INTO spcd.connection_health (connection_name, reachable, last_failure, latency_ms)
                 VALUES ({name}, false, {text}, 1e9);
                 INSERT INTO spcd.connection_event (connection_name, status, error, generation)
                 VALUES ({name}, 'error', {text} || '{long}', 1)"
            ))
            .await;
    }
    filled
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_errors_are_text_and_fit_on_a_phone() {
    let filled = hostile().await;
    let (mut spcd, address) = served(&filled.hub.url);
    spcd.start();
    let page = opened(&address);
    // A list and details of each; wide, and as narrow as phones are.
    let overflow = "(() => {
        const width = document.documentElement.clientWidth;
        const wide = [...document.querySelectorAll('body *')].filter((it) => it.checkVisibility())
            .filter((it) => it.getBoundingClientRect().right > width + 0.5 || it.getBoundingClientRect().left < -0.5);
        return [document.documentElement.scrollWidth <= width, wide.map((it) => it.className + it.outerHTML.slice(0, 80)).join(' ')];
    })()";
    for (width, height) in [(1280, 800), (900, 700), (360, 740)] {
        page.size(width, height);
        page.until(&format!("innerWidth === {width}"));
        assert_eq!(
            page.value(overflow),
            serde_json::json!([true, ""]),
            "the list at {width}"
        );
        for text in HOSTILE {
            let name: String = text.chars().take(40).collect();
            page.until(&format!("{} !== undefined", row(&name)));
            page.value(&format!("{}.click()", row(&name)));
            let shown = "document.querySelector('.detail h2')?.textContent";
            page.until(&format!("{shown} === {}", serde_json::Value::from(name)));
            page.until("document.querySelector('.times .why') !== null");
            let error = page.value("document.querySelector('.detail .text.wrong').textContent");
            assert!(error.as_str().unwrap().starts_with(text), "{error}");
            assert_eq!(
                page.value(overflow),
                serde_json::json!([true, ""]),
                "{text} at {width}"
            );
            page.press("Escape");
            page.until("document.querySelector('#detail').hidden");
        }
    }
    assert!(page.value("window.pwned").is_null());
    let foreign = "document.querySelectorAll('img, svg, iframe, object, embed, base, script:not([src=\"/page.js\"]), [onerror], [onload], [style*=url]').length";
    assert_eq!(page.value(foreign), 0);
    assert_eq!(page.complaints(), [""; 0], "nothing was even tried");
    // An injected script would not run either.
    page.value("(() => { const it = document.createElement('script'); try { it.text = 'window.pwned = 1'; document.body.append(it); } catch {} it.remove(); })()");
    assert!(page.value("window.pwned").is_null());
    spcd.stop();
}

/// The least contrast of any text that is seen, and where: WCAG's formula.
const CONTRAST: &str = "(() => {
    const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
    const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const behind = (it) => { const found = [];
        for (let at = it; at; at = at.parentElement) { const c = parse(getComputedStyle(at).backgroundColor); found.push(c); if (c[3] === 1) break; }
        return found.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]); };
    const texts = [];
    const add = (it, style, what) => {
        const ground = behind(it); const ink = over(parse(style.color), ground);
        const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
        texts.push([(a + 0.05) / (b + 0.05), what]);
    };
    for (const it of document.querySelectorAll('body *')) {
        if (!it.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
        const own = [...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (own || ['INPUT', 'SELECT'].includes(it.tagName)) add(it, getComputedStyle(it), it.className + ' ' + it.textContent.slice(0, 40));
        if (it.placeholder) add(it, getComputedStyle(it, '::placeholder'), 'placeholder');
        if (getComputedStyle(it, '::before').content.match(/^\".+\"$/)) add(it, getComputedStyle(it, '::before'), 'mark of ' + it.className);
    }
    texts.sort((a, b) => a[0] - b[0]);
    return [texts.length, ...texts[0]];
})()";

#[tokio::test(flavor = "multi_thread")]
async fn every_text_stands_out_in_light_and_in_dark() {
    let filled = Filled::with(200).await;
    let (mut spcd, address) = served(&filled.hub.url);
    spcd.start();
    let page = opened(&address);
    page.until("document.querySelector('#live').dataset.state === 'on'");
    let check = |what: &str| {
        let found = page.value(CONTRAST);
        assert!(found[0].as_u64().unwrap() > 50, "{what}: {found}");
        assert!(found[1].as_f64().unwrap() >= 4.5, "{what}: {found}");
    };
    let ground = "getComputedStyle(document.body).backgroundColor";
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        page.colours(scheme);
        check(&format!("{scheme}: list"));
        grounds.push(page.value(ground));
        for status in ["error", "ready", "updating", "disabled"] {
            page.click(&format!("#counts [data-status={status}]"));
            page.until(&format!(
                "document.querySelector('.row .status')?.dataset.status === '{status}'"
            ));
            page.click(".row");
            page.until("document.querySelector('.times li') !== null");
            check(&format!("{scheme}: {status}"));
            page.press("Escape");
            page.until("document.querySelector('#detail').hidden");
            page.click(&format!("#counts [data-status={status}]"));
            page.until("document.querySelector('#shown').textContent === '200 connections'");
        }
        page.value("document.querySelector('#ask').showModal()");
        check(&format!("{scheme}: the token"));
        page.value("document.querySelector('#ask').close()");
    }
    assert_ne!(grounds[0], grounds[1]);
    // The button goes through the system's colours, light, dark; and it is remembered.
    page.colours("light");
    for wanted in [&grounds[0], &grounds[1], &grounds[0]] {
        page.click("#theme");
        page.until(&format!("{ground} === {wanted}"));
    }
    page.click("#theme");
    page.click("#theme");
    reopen(&page, &address);
    page.until(&format!("{ground} === {}", grounds[1]));
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn enter_in_the_dialog_gives_the_token() {
    let source = shared().database().await;
    let hub = shared().database().await;
    let (mut spcd, address) = served_with_token(&hub.url);
    spcd.write("one.spc", &postgres("one", &source));
    spcd.start();
    hub::until(&hub.url, &["one ready"]).await;
    let page = opened(&address);
    page.click(".row");
    page.until("document.querySelector('[data-verb=refresh]') !== null");
    page.click("[data-verb=refresh]");
    page.until("document.querySelector('#ask').open");
    page.click("#ask-cancel");
    page.until("!document.querySelector('#ask').open");
    page.until("document.querySelector('.told').textContent.includes('token')");
    page.click("[data-verb=refresh]");
    page.until("document.querySelector('#ask').open");
    page.type_in("s3cret");
    page.press("Enter");
    page.until("document.querySelector('.told').textContent.includes('will be asked again')");
    spcd.stop();
}

/// What docs/ shows, by scripts/screenshots.sh.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes pictures"]
async fn screenshots() {
    let dir = std::env::var("SPCD_SCREENSHOTS").expect("a directory in SPCD_SCREENSHOTS");
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(dir);
    let file = |name: &str| -> PathBuf { dir.join(name) };
    for (count, name) in [(100, "page-100.png"), (10_000, "page-10000.png")] {
        let filled = Filled::with(count).await;
        let (mut spcd, address) = served(&filled.hub.url);
        spcd.start();
        let page = opened(&address);
        page.until("document.querySelector('#live').dataset.state === 'on'");
        page.picture(&file(name));
        if count == 100 {
            page.size(1280, 960);
            page.click(".row");
            page.until("document.querySelector('.times li') !== null");
            page.picture(&file("page-error.png"));
            page.colours("dark");
            page.picture(&file("page-dark.png"));
            page.size(360, 740);
            page.until("innerWidth === 360");
            page.picture(&file("page-phone-error.png"));
            page.press("Escape");
            page.until("document.querySelector('#detail').hidden");
            page.colours("light");
            page.picture(&file("page-phone.png"));
        }
        spcd.stop();
    }
}
