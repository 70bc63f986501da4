//! What a request may be, and what its path is made to be. Pure.

use std::borrow::Cow;

use http::header;
use pingora::http::RequestHeader;
use pingora::http::authority::{RawTargetAuthority, raw_target_authority};

use super::error::Fault;
use super::settings::Limits;

/// Whether the header of a request is within the limits; `bytes` is its size where the proxy library knows it.
pub(super) fn check(request: &RequestHeader, bytes: Option<usize>, limits: &Limits) -> Result<(), Fault> {
    let target = request.raw_path().len();
    if target > limits.uri_bytes {
        return Err(Fault::UriTooLong);
    }
    if request.headers.len() > limits.headers {
        return Err(Fault::HeaderTooLarge);
    }
    let size = bytes.unwrap_or_else(|| {
        request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>()
            + target
    });
    if size > limits.header_bytes {
        return Err(Fault::HeaderTooLarge);
    }
    let Some(most) = limits.body_bytes else { return Ok(()) };
    let length = request
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > most) { Err(Fault::BodyTooLarge) } else { Ok(()) }
}

/// The path of a request target, without what says the same in other words: characters that need no escape are decoded,
/// repeated slashes joined, `.` and `..` resolved (never above the root). The query stays as it is, and so does what an absolute
/// target has before its path.
pub(super) fn normalize(target: &[u8]) -> Cow<'_, [u8]> {
    let relative = match raw_target_authority(target) {
        RawTargetAuthority::Absolute { path_and_query, .. } => path_and_query,
        RawTargetAuthority::None | RawTargetAuthority::AmbiguousAuthority => target,
    };
    let before = &target[..target.len() - relative.len()];
    let end = relative.iter().position(|byte| *byte == b'?').unwrap_or(relative.len());
    let (path, query) = relative.split_at(end);
    if !path.starts_with(b"/") || !needs_work(path) {
        return Cow::Borrowed(target);
    }
    let decoded = decode(path);
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut last_is_folder = false;
    for segment in decoded.split(|byte| *byte == b'/') {
        last_is_folder = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let mut made = Vec::with_capacity(target.len());
    made.extend_from_slice(before);
    for segment in &segments {
        made.push(b'/');
        made.extend_from_slice(segment);
    }
    if last_is_folder || segments.is_empty() {
        made.push(b'/');
    }
    made.extend_from_slice(query);
    Cow::Owned(made)
}

fn needs_work(path: &[u8]) -> bool {
    path.contains(&b'%') || path.windows(2).any(|two| matches!(two, b"//" | b"/."))
}

fn decode(path: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut made = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        match escaped {
            Some(plain) if plain.is_ascii_alphanumeric() || b"-._~".contains(&plain) => {
                made.push(plain);
                rest = &after[2..];
            }
            Some(_) => {
                made.push(b'%');
                made.extend(after[..2].iter().map(u8::to_ascii_uppercase));
                rest = &after[2..];
            }
            None => made.push(*first),
        }
    }
    made
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_path_for_one_thing() {
        for (from, to) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b///c", "/a/b/c"),
            ("/a/./b/../c", "/a/c"),
            ("/../../etc/passwd", "/etc/passwd"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/%61/%2e%2e/%7Eb", "/~b"),
            ("/a%2fb%c3%a9", "/a%2Fb%C3%A9"),
            ("/a%zz%", "/a%zz%"),
            ("/a/../b?x=/../%61//", "/b?x=/../%61//"),
            ("/.hidden", "/.hidden"),
            ("*", "*"),
            ("http://a/x/%2e%2e/admin?x=/../", "http://a/admin?x=/../"),
            ("http://a..b//c", "http://a..b/c"),
            ("http://a/..", "http://a/"),
            ("http://a", "http://a"),
            ("http://a?x=/../b", "http://a?x=/../b"),
        ] {
            let made = normalize(from.as_bytes()).into_owned();
            assert_eq!(String::from_utf8(made.clone()).unwrap(), to, "{from}");
            assert_eq!(normalize(&made), made, "{from}: once is enough");
        }
    }

    #[test]
    fn each_limit() {
        let limits = Limits { headers: 2, header_bytes: 100, uri_bytes: 20, body_bytes: Some(10) };
        let of = |path: &str, headers: &[(&'static str, &str)]| {
            let mut request = RequestHeader::build("POST", path.as_bytes(), None).unwrap();
            for (name, value) in headers {
                request.append_header(*name, *value).unwrap();
            }
            check(&request, None, &limits)
        };
        assert_eq!(of("/", &[("a", "1"), ("content-length", "10")]), Ok(()));
        assert_eq!(of("/", &[("content-length", "11")]), Err(Fault::BodyTooLarge));
        assert_eq!(of("/", &[("a", "1"), ("a", "2"), ("a", "3")]), Err(Fault::HeaderTooLarge));
        assert_eq!(of("/", &[("a", &"x".repeat(100))]), Err(Fault::HeaderTooLarge));
        assert_eq!(of(&"/".repeat(21), &[]), Err(Fault::UriTooLong));
    }
}
