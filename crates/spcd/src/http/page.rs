//! The page: static files, compiled in.

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;

use super::Shared;

/// Routes of the page and of the files that it loads.
pub fn routes() -> Router<Shared> {
    let file = |kind: &'static str, text: &'static str| {
        get(async move || {
            // A newer daemon may serve other contents under the same names.
            let head = [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")];
            (head, text).into_response()
        })
    };
    Router::new()
        .route(
            "/",
            file("text/html; charset=utf-8", include_str!("assets/page.html")),
        )
        .route(
            "/page.css",
            file("text/css; charset=utf-8", include_str!("assets/page.css")),
        )
        .route(
            "/page.js",
            file(
                "text/javascript; charset=utf-8",
                include_str!("assets/page.js"),
            ),
        )
        .route(
            "/icon.svg",
            file("image/svg+xml", include_str!("assets/icon.svg")),
        )
        .route(
            "/favicon.ico",
            file("image/svg+xml", include_str!("assets/icon.svg")),
        )
}
