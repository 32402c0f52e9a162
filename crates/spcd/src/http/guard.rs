//! Access control, and the headers of every response.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use spcd_core::secret::Secret;

use super::{Problem, Shared};
use crate::settings;

/// Header that tells clients whether they can change anything over HTTP: `token` or `off`.
const ACTIONS: HeaderName = HeaderName::from_static("spcd-actions");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Headers of every response. The page loads nothing from other hosts, cannot be framed, and runs no
/// script but its own file.
const HEADERS: [(&str, &str); 6] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
];

/// Checks each request, and adds the headers to its response.
pub async fn guard(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let settings = app.settings.borrow().clone();
    let mut response = match admit(&settings, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let actions = match settings.token_file {
        Some(_) => "token",
        None => "off",
    };
    headers.insert(ACTIONS, HeaderValue::from_static(actions));
    headers
        .entry("cache-control")
        .or_insert(HeaderValue::from_static("no-store"));
    if response.status() == StatusCode::UNAUTHORIZED {
        let bearer = HeaderValue::from_static("Bearer realm=\"spcd\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, bearer);
    }
    response
}

fn admit(settings: &settings::Http, request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    let host = host(request)?;
    if !is_ours(settings, &host) {
        let error = format!(
            "this is not {}; if it is to be reached by that name, add it to http_hosts",
            host.host()
        );
        return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, error));
    }
    let path = request.uri().path();
    let writes = !matches!(*request.method(), Method::GET | Method::HEAD);
    // Other sites may link to the page. All other requests must come from the page itself.
    if (writes || path.starts_with("/api/") || path == "/metrics")
        && is_cross_site(settings, headers, &host)
    {
        let error = "requests from other sites are refused";
        return Err(Problem::new(StatusCode::FORBIDDEN, error));
    }
    let open = !path.starts_with("/api/") && path != "/metrics";
    if writes || (!settings.listen.is_local() && !open) {
        show_token(settings, headers)?;
    }
    Ok(())
}

/// Whether the request carries the token.
pub fn knows_token(settings: &settings::Http, headers: &HeaderMap) -> bool {
    show_token(settings, headers).is_ok()
}

fn show_token(settings: &settings::Http, headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    if settings.token_file.is_none() {
        let error = "no token is set, so nothing can be changed over HTTP: put one into a file and \
                     set http_token_file";
        return Err(Problem::new(StatusCode::FORBIDDEN, error));
    }
    let token =
        token(settings).map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    match given {
        Some(given) if is_same(given.as_bytes(), token.expose().as_bytes()) => Ok(()),
        Some(_) => {
            let error = "the token is wrong";
            Err(Problem::new(StatusCode::UNAUTHORIZED, error))
        }
        None => {
            let error = "a token is required: Authorization: Bearer …";
            Err(Problem::new(StatusCode::UNAUTHORIZED, error))
        }
    }
}

/// Reads the token. Its file may have changed since the last request.
///
/// # Errors
/// No token is set, or its file cannot be read or is empty.
pub fn token(settings: &settings::Http) -> Result<Secret, String> {
    let Some(file) = &settings.token_file else {
        return Err("no token is set; set http_token_file".into());
    };
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("cannot read the token from {}: {error}", file.display()))?;
    match text.trim() {
        "" => Err(format!("the token file {} is empty", file.display())),
        token => Ok(Secret::new(token)),
    }
}

/// Compares in constant time for a given length.
fn is_same(given: &[u8], token: &[u8]) -> bool {
    let differs = given.iter().enumerate().fold(0u8, |differs, (at, byte)| {
        let other = token.get(at % token.len().max(1)).copied();
        std::hint::black_box(differs | (byte ^ other.unwrap_or_default()))
    });
    std::hint::black_box(differs) == 0 && given.len() == token.len()
}

/// Returns the host that the request names.
fn host(request: &Request) -> Result<Authority, Problem> {
    if let Some(authority) = request.uri().authority() {
        return Ok(authority.clone());
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        _ => None,
    };
    host.and_then(|host| host.parse().ok())
        .ok_or_else(|| Problem::new(StatusCode::BAD_REQUEST, "one Host header is required"))
}

/// A foreign DNS name can be made to resolve to this address (DNS rebinding); an address cannot.
fn is_ours(settings: &settings::Http, host: &Authority) -> bool {
    let name = host.host().trim_end_matches('.');
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let known = |host: &String| host.eq_ignore_ascii_case(name);
    address.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || settings.hosts.iter().any(known)
}

fn is_cross_site(settings: &settings::Http, headers: &HeaderMap, host: &Authority) -> bool {
    if let Some(site) = headers.get(SEC_FETCH_SITE)
        && !matches!(site.as_bytes(), b"same-origin" | b"none")
    {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return false;
    };
    // An opaque origin is "null".
    let origin = origin.to_str().ok().and_then(|origin| {
        let (_, authority) = origin.split_once("://")?;
        authority.parse::<Authority>().ok()
    });
    let is_same = |origin: Authority| {
        origin == *host
// A proxy may forward requests to another port.
            || settings.hosts.iter().any(|known| known.eq_ignore_ascii_case(origin.host()))
    };
    !origin.is_some_and(is_same)
}

#[cfg(test)]
mod tests {
    use super::is_same;

    #[test]
    fn only_the_whole_token_is_the_token() {
        assert!(is_same(b"secret", b"secret"));
        for wrong in [
            &b""[..],
            b"secre",
            b"secrets",
            b"secretsecret",
            b"Secret",
            b"xxxxxx",
        ] {
            assert!(!is_same(wrong, b"secret"), "{wrong:?}");
        }
        assert!(!is_same(b"x", b""));
    }
}
