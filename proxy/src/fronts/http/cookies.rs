//! Keeps the dashboard's session to itself: cookies know no ports, so that a browser shows it to whatever else has the admin API's host name. And
//! puts the cookies of an HTTP/2 client, which may come one by one, into the one line that HTTP/1.1 has for them (RFC 9113, 8.2.3).

use http::header::{COOKIE, HeaderValue, SET_COOKIE};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{ErrorType, OrErr, Result};

use crate::admin::access::SESSION;

/// Takes the session out of what a client shows, which the endpoint does not get; the rest is in one line.
pub(super) fn pass_on(request: &mut RequestHeader) -> Result<()> {
    let shown = request.headers.get_all(COOKIE);
    let is_one = shown.iter().nth(1).is_none();
    if is_one && !shown.iter().any(|value| pairs(value).any(is_session)) {
        return Ok(());
    }
    let others: Vec<_> = shown
        .iter()
        .map(|value| pairs(value).filter(|pair| !is_session(pair)).collect::<Vec<_>>().join(&b';'))
        .map(|value| value.trim_ascii().to_owned())
        .filter(|value| !value.is_empty())
        .collect();
    request.remove_header(&COOKIE);
    if others.is_empty() {
        return Ok(());
    }
    let others = others.join(&b"; "[..]);
    request.insert_header(
        "Cookie",
        HeaderValue::from_bytes(&others).or_err(ErrorType::InvalidHTTPHeader, "cookies")?,
    )
}

/// Takes a session out of what an endpoint answers: it neither ends nor replaces the dashboard's.
pub(super) fn take_from_answer(response: &mut ResponseHeader) -> Result<()> {
    let set = response.headers.get_all(SET_COOKIE);
    if !set.iter().any(|value| is_session(value.as_bytes())) {
        return Ok(());
    }
    let others: Vec<_> = set.iter().filter(|value| !is_session(value.as_bytes())).cloned().collect();
    response.remove_header(&SET_COOKIE);
    for value in others {
        response.append_header("Set-Cookie", value)?;
    }
    Ok(())
}

fn pairs(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b';')
}

/// Whether it begins with the session's name and a value. Of a cookie without a name browsers show the value alone, which may look like that.
fn is_session(pair: &[u8]) -> bool {
    let pair = pair.trim_ascii_start();
    let pair = pair.strip_prefix(b"=").unwrap_or(pair).trim_ascii_start();
    pair.strip_prefix(SESSION.as_bytes()).is_some_and(|rest| rest.trim_ascii_start().starts_with(b"="))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_session_is_not_passed_on_and_the_rest_is_in_one_line() {
        for (shown, passed) in [
            (&["godwit_session=secret"][..], &[][..]),
            (&["a=1; godwit_session=secret; b=2"], &["a=1; b=2"]),
            (&["godwit_session=secret; a=1"], &["a=1"]),
            (&["a=1", "godwit_session=secret", "b=2;godwit_session=x"], &["a=1; b=2"]),
            (&["a=1; b=2;", "c=3"], &["a=1; b=2;; c=3"]),
            (
                &["a=\"b;c=d", "my_godwit_session=1; godwit_session2=2"],
                &["a=\"b;c=d; my_godwit_session=1; godwit_session2=2"],
            ),
        ] {
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            for value in shown {
                request.append_header("cookie", *value).unwrap();
            }
            pass_on(&mut request).unwrap();
            let left: Vec<_> = request.headers.get_all(COOKIE).iter().collect();
            assert_eq!(left, passed, "{shown:?}");
        }
    }

    #[test]
    fn an_endpoint_does_not_set_it() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        let set = [
            "a=1; Path=/",
            "godwit_session=; Max-Age=0",
            "=godwit_session=x",
            " godwit_session =x",
            "b=godwit_session=1",
        ];
        for value in set {
            response.append_header("set-cookie", value).unwrap();
        }
        take_from_answer(&mut response).unwrap();
        let left: Vec<_> = response.headers.get_all(SET_COOKIE).iter().collect();
        assert_eq!(left, ["a=1; Path=/", "b=godwit_session=1"]);
    }
}
