//! The page with 10,000 connections, used by mouse, keyboard and phone.

use serde_json::{Value, json};

use super::chromium::Page;
use super::fill::Filled;
use super::{opened, row, served, served_with_token};

/// What has the focus: the id of the nearest element that has one, and its text if it is a button.
const FOCUSED: &str = "(() => {
    const it = document.activeElement;
    const name = it.closest('[id]')?.id ?? '';
    return it.tagName === 'BUTTON' && it.id !== name ? name + ' ' + it.textContent.replace(/[ \\d,]*[↑↓]?$/, '') : name;
})()";

/// Whether one sees that it has: an outline on the screen, or the bar at a row.
const SEEN: &str = "(() => {
    const focused = document.activeElement;
    const it = focused.id === 'grid' ? document.getElementById('scroll') : focused;
    const picked = focused.getAttribute('aria-activedescendant');
    if (picked) return getComputedStyle(document.getElementById(picked)).boxShadow !== 'none';
    const style = getComputedStyle(it);
    const box = it.getBoundingClientRect();
    return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 && box.width > 0 && box.height > 0
        && box.left >= 0 && box.top >= 0 && box.right <= innerWidth && box.bottom <= innerHeight
        && it.contains(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2));
})()";

/// Where one comes by Tab from the top of the page until it begins anew, all of it seen.
fn round(page: &Page) -> Vec<String> {
    page.value("(() => { const top = document.body; top.tabIndex = -1; top.focus(); top.removeAttribute('tabindex'); })()");
    let mut round = Vec::new();
    loop {
        page.press("Tab");
        let at = page.value(FOCUSED);
        let at = at.as_str().unwrap();
        if at.is_empty() || round.iter().any(|before| before == at) {
            return round;
        }
        assert_eq!(page.value(SEEN), true, "the focus at {at} is not seen");
        round.push(at.to_owned());
        assert!(round.len() < 50, "{round:?}");
    }
}

/// The names of the rows that are drawn, from the top.
const NAMES: &str = "[...document.querySelectorAll('.row')]
    .sort((a, b) => a.getAttribute('aria-rowindex') - b.getAttribute('aria-rowindex'))
    .map((row) => row.dataset.name)";

/// The first and the last of all by a column, as the database sorts them.
async fn ends(filled: &Filled, by: &str) -> (String, String) {
    let one = async |order: &str| {
        let sql = format!(
            "SELECT connection_name FROM spcd.connection_state
             ORDER BY {by} {order}, connection_name COLLATE \"en-x-icu\" LIMIT 1"
        );
        crate::support::value(&filled.hub.url, &sql).await
    };
    (one("ASC").await, one("DESC").await)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_is_in_reach_of_the_keyboard_and_one_sees_where_one_is() {
    let filled = Filled::with(10_000).await;
    let (mut spcd, address) = served_with_token(&filled.hub.url);
    spcd.start();
    let page = opened(&address);
    let statuses = ["error", "updating", "ready", "disabled"];
    let counts: Vec<String> = (statuses.iter().map(|it| format!("counts {it}"))).collect();
    let counts: Vec<&str> = counts.iter().map(String::as_str).collect();
    let heads = [
        "head Status",
        "head Connection",
        "head Plugin",
        "head Source",
        "head Tables",
        "head Changed",
        "head Error, warning or place",
    ];
    let detail = ["detail Close", "detail Refresh", "detail Reconnect"];
    let wide = [&counts[..], &["theme", "filter", "grid"], &heads].concat();
    assert_eq!(round(&page), wide);
    // With the details open they come last, and the columns that have no room are left out.
    page.click(".row");
    page.until("document.querySelector('.times li') !== null");
    let heads = [heads[0], heads[1], heads[3], heads[4], heads[5]];
    let open = [&counts[..], &["theme", "filter", "grid"], &heads, &detail].concat();
    assert_eq!(round(&page), open);
    // Back from them, and away.
    page.press_shift("Tab");
    page.press("Escape");
    page.until("document.querySelector('#detail').hidden");
    assert_eq!(page.value(FOCUSED), "grid");
    assert_eq!(page.value(SEEN), true);

    // A button of a column sorts, and keeps the focus.
    let name = page.value("document.querySelector('.row').dataset.name");
    page.press("Tab");
    assert_eq!(page.value(FOCUSED), "head Status");
    page.press("Enter");
    page.until("document.querySelector('#head > :first-child').ariaSort === 'descending'");
    assert_eq!(page.value(FOCUSED), "head Status");
    page.until(&format!("{NAMES}[0] !== {name}"));

    // On a phone the details are all that there is, until they are closed.
    page.size(360, 740);
    page.until("innerWidth === 360");
    let phone = [&counts[..], &["theme", "filter", "sort", "turn", "grid"]].concat();
    assert_eq!(round(&page), phone);
    page.value("document.querySelector('#grid').focus()");
    page.press("Home");
    page.press("Enter");
    page.until("document.querySelector('.times li') !== null");
    assert_eq!(page.value(FOCUSED), "detail Close");
    assert_eq!(round(&page), detail);
    page.press("Escape");
    page.until("document.querySelector('#detail').hidden");
    assert_eq!(page.value(FOCUSED), "grid");
    assert_eq!(round(&page), phone);
    assert_eq!(page.complaints(), [""; 0]);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_column_sorts_both_ways_from_the_top() {
    let filled = Filled::with(10_000).await;
    let (mut spcd, address) = served(&filled.hub.url);
    spcd.start();
    let page = opened(&address);
    let first = |name: &str| page.until(&format!("{NAMES}[0] === {}", Value::from(name)));
    let sorted = [
        (2, "connection_name COLLATE \"en-x-icu\""),
        (3, "plugin COLLATE \"en-x-icu\""),
        (5, "-coalesce(table_count, -1)"),
        (6, "-extract(epoch FROM time_changed)"),
    ];
    for (column, by) in sorted {
        let (top, bottom) = ends(&filled, by).await;
        for (name, way) in [(top, "ascending"), (bottom, "descending")] {
            // From anywhere in the list one is taken to its top.
            page.value("document.querySelector('#scroll').scrollTop = 100000");
            page.click(&format!("#head > :nth-child({column}) button"));
            first(&name);
            let told = format!("document.querySelector('#head > :nth-child({column})').ariaSort");
            assert_eq!(page.value(&told), way, "{by}");
        }
    }
    // As on a phone, where there are no columns.
    page.size(360, 740);
    page.until("innerWidth === 360");
    let (top, bottom) = ends(&filled, sorted[0].1).await;
    page.value(
        "(() => { const it = document.querySelector('#sort'); it.value = 'name';
            it.dispatchEvent(new Event('change')); })()",
    );
    first(&top);
    page.click("#turn");
    first(&bottom);
    // With a filter and a status too, and what is open stays open.
    page.value(&format!("{}.click()", row(&bottom)));
    page.until("document.querySelector('.times li') !== null");
    page.size(1280, 800);
    page.until("innerWidth === 1280");
    // The layout may still move: a click at a place could hit what is there no more, and the filter is
    // out of reach until the details no longer cover it.
    page.until(
        "(document.querySelector('#filter').focus(), document.activeElement.id === 'filter')",
    );
    page.type_in("sales_ .spc");
    page.value("document.querySelector('#counts [data-status=error]').click()");
    page.until(&format!(
        "{NAMES}.every((name) => name.startsWith('sales_'))"
    ));
    page.until("[...document.querySelectorAll('.row .status')].every((it) => it.dataset.status === 'error')");
    let shown = page.value("document.querySelector('.detail h2').textContent");
    assert_eq!(shown, bottom.as_str());
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_reads_or_is_about_to_press_stays_while_it_changes() {
    let filled = Filled::with(10_000).await;
    let (mut spcd, address) = served_with_token(&filled.hub.url);
    spcd.start();
    let page = opened(&address);
    page.click("#counts [data-status=error]");
    page.until("document.querySelector('.row .status').dataset.status === 'error'");
    page.click(".row");
    page.until("document.querySelector('.times li') !== null");
    let name = page.value("document.querySelector('.detail h2').textContent");
    let name = name.as_str().unwrap();
    // A user selects the error, to copy it, and scrolls to the events.
    let error = page.value(
        "(() => { getSelection().selectAllChildren(document.querySelector('.detail .text'));
            document.querySelector('.detail').scrollTop = 40; return getSelection().toString(); })()",
    );
    assert!(!error.as_str().unwrap().is_empty());
    let change = |route: Value| {
        let change = json!([{"name": name, "route": route, "error": error}]);
        let change = spcd_core::sql::literal(&change.to_string());
        format!("SELECT spcd.publish(nextval('spcd.generation'), {change})")
    };
    let first = "document.querySelector('.times li span').textContent";
    let events = page.value("document.querySelectorAll('.times li').length");
    page.value("document.querySelector('[data-verb=refresh]').focus({ preventScroll: true })");
    filled.run(&change(json!(["updating", "error"]))).await;
    page.until(&format!(
        "document.querySelectorAll('.times li').length === {events} + 2"
    ));
    assert_eq!(page.value(first), "error");
    assert_eq!(page.value("getSelection().toString()"), error);
    assert_eq!(
        page.value("document.querySelector('.detail').scrollTop"),
        40
    );
    assert_eq!(page.value(FOCUSED), "detail Refresh");
    // Its mending shows there too, though the list is of errors alone and it is none any more.
    page.value("document.querySelector('.detail header button').focus()");
    filled.run(&change(json!(["updating", "ready"]))).await;
    page.until("document.querySelector('.detail .status').textContent === 'ready'");
    page.until("document.querySelector('.detail .text.wrong') === null");
    page.until(&format!("{} === undefined", row(name)));
    assert_eq!(page.value(FOCUSED), "detail Close");
    page.press("Escape");
    page.until("document.querySelector('#detail').hidden");
    assert_eq!(page.complaints(), [""; 0]);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn going_back_closes_what_was_opened() {
    let filled = Filled::with(100).await;
    let (mut spcd, address) = served(&filled.hub.url);
    spcd.start();
    let page = opened(&address);
    page.value("window.kept = 'the same page'");
    let length = page.value("history.length").as_u64().unwrap();
    for n in 0..3 {
        page.value(&format!("document.querySelectorAll('.row')[{n}].click()"));
        page.until("document.querySelector('.times li') !== null");
        let hash = page.value("decodeURIComponent(location.hash.slice(1))");
        assert_eq!(
            hash,
            page.value("document.querySelector('.detail h2').textContent")
        );
    }
    assert_eq!(page.value("history.length"), length + 1);
    page.value("history.back()");
    page.until("document.querySelector('#detail').hidden && location.hash === ''");
    page.value("history.forward()");
    page.until("!document.querySelector('#detail').hidden && location.hash !== ''");
    page.press("Escape");
    page.until("document.querySelector('#detail').hidden && location.hash === ''");
    assert_eq!(page.value("window.kept"), "the same page");
    // An address leads to it.
    let name = page.value("document.querySelector('.row').dataset.name");
    page.open("about:blank");
    page.open(&format!("http://{address}/#{}", name.as_str().unwrap()));
    page.until(&format!(
        "document.querySelector('.detail h2')?.textContent === {name}"
    ));
    spcd.stop();
}
