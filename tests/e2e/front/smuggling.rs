//! Requests that two readers may read differently: a strict upstream behind the front must see exactly what was sent, or
//! none of it, and never a request within a request.

use std::time::Duration;

use godwit::config::model::HttpFront;
use godwit::fronts::pools::Pool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::raw::{Raw, Seen};
use super::{Front, WIDE, free, until};

/// What the upstream may see.
#[derive(Clone, Copy, Debug)]
enum May {
    /// These requests, all of them.
    See(&'static [&'static str]),
    /// These, or only the first few, or none.
    SeeOrNot(&'static [&'static str]),
    /// None.
    SeeNothing,
}
use May::{See, SeeNothing, SeeOrNot};

const INNER: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Name, bytes, and what may come of them. `{INNER}` is a request that must never be seen where it is part of another.
const TABLE: &[(&str, &str, May)] = &[
    // What is right.
    ("plain", "GET /a HTTP/1.1\r\nHost: a\r\n\r\n", See(&["GET /a"])),
    (
        "pipelined",
        "GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
        See(&["GET /a", "GET /b"]),
    ),
    ("length", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody", See(&["POST /a"])),
    (
        "a body that looks like a request",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n\r\n{INNER}",
        See(&["POST /a"]),
    ),
    (
        "chunked",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        See(&["POST /a"]),
    ),
    (
        "chunks that look like a request",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n23\r\n{INNER}\r\n0\r\n\r\n",
        See(&["POST /a"]),
    ),
    (
        "chunked, any case",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ChUnKeD\r\n\r\n0\r\n\r\n",
        See(&["POST /a"]),
    ),
    (
        "trailers",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nContent-Length: 9\r\nHost: b\r\n\r\n",
        SeeOrNot(&["POST /a"]),
    ),
    (
        "same length twice",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
        SeeNothing,
    ),
    ("same length in a list", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nbody", SeeNothing),
    ("absolute target", "GET http://a/a HTTP/1.1\r\nHost: a\r\n\r\n", SeeOrNot(&["GET http://a/a"])),
    ("leading empty line", "\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n", SeeOrNot(&["GET /a"])),
    (
        "space around a value",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: \t 4 \t\r\n\r\nbody",
        SeeOrNot(&["POST /a"]),
    ),
    // Two framings.
    (
        "length and chunked",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        SeeNothing,
    ),
    (
        "chunked and length",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 40\r\n\r\n0\r\n\r\n{INNER}",
        SeeNothing,
    ),
    (
        "length nothing and chunked",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "two lengths",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 35\r\n\r\n{INNER}",
        SeeNothing,
    ),
    (
        "two lengths, large first",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\nContent-Length: 0\r\n\r\n{INNER}",
        SeeNothing,
    ),
    ("lengths in a list", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 35\r\n\r\n{INNER}", SeeNothing),
    (
        "chunked twice",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        SeeOrNot(&["POST /a"]),
    ),
    (
        "chunked, then identity",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "identity and length",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nContent-Length: 4\r\n\r\nbody",
        SeeNothing,
    ),
    (
        "not chunked at last",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "unknown coding",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "quoted coding",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "coding with a parameter",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;x=1\r\n\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "coding and a vertical tab",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "coding in HTTP/1.0",
        "POST /a HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        SeeNothing,
    ),
    // Names of headers.
    (
        "space before the colon",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length : 35\r\n\r\n{INNER}",
        SeeNothing,
    ),
    (
        "space before the coding's colon",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "tab before the colon",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length\t: 35\r\n\r\n{INNER}",
        SeeNothing,
    ),
    (
        "space before the first header",
        "POST /a HTTP/1.1\r\n Content-Length: 35\r\nHost: a\r\n\r\n{INNER}",
        SeeNothing,
    ),
    (
        "a name with a nothing in it",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent\0-Length: 35\r\n\r\n{INNER}",
        SeeNothing,
    ),
    ("an empty name", "GET /a HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", SeeNothing),
    ("a line without a colon", "GET /a HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n", SeeNothing),
    ("a host that is none", "GET /a HTTP/1.1\r\nHost: a b\r\n\r\n", SeeNothing),
    ("an underscore", "POST /a HTTP/1.1\r\nHost: a\r\nContent_Length: 35\r\n\r\n", SeeOrNot(&["POST /a"])),
    ("a control character in a name", "GET /a HTTP/1.1\r\nHost: a\r\nx\x01y: 1\r\n\r\n", SeeNothing),
    ("parentheses in a name", "GET /a HTTP/1.1\r\nHost: a\r\nx(y): 1\r\n\r\n", SeeNothing),
    // Folded and broken lines.
    ("folded line", "POST /a HTTP/1.1\r\nHost: a\r\nX: 1\r\n Content-Length: 35\r\n\r\n", SeeNothing),
    (
        "folded coding",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "bare carriage return in a value",
        "GET /a HTTP/1.1\r\nHost: a\r\nX: 1\rContent-Length: 35\r\n\r\n",
        SeeNothing,
    ),
    (
        "bare line feed ends a line",
        "POST /a HTTP/1.1\nHost: a\nContent-Length: 4\n\nbody",
        SeeOrNot(&["POST /a"]),
    ),
    (
        "bare line feed hides a length",
        "POST /a HTTP/1.1\r\nHost: a\r\nX: 1\nContent-Length: 35\r\n\r\n{INNER}",
        SeeOrNot(&["POST /a"]),
    ),
    (
        "line feeds end the header",
        "GET /a HTTP/1.1\r\nHost: a\r\n\n{INNER}",
        SeeOrNot(&["GET /a", "GET /smuggled"]),
    ),
    ("carriage returns alone", "GET /a HTTP/1.1\rHost: a\r\r", SeeNothing),
    ("two carriage returns", "GET /a HTTP/1.1\r\r\nHost: a\r\n\r\n", SeeNothing),
    ("a nothing in a value", "GET /a HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n", SeeNothing),
    // Lengths that are none.
    ("negative length", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", SeeNothing),
    ("length with a plus", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nbody", SeeNothing),
    ("hexadecimal length", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nbody", SeeNothing),
    ("length with an exponent", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4e0\r\n\r\nbody", SeeNothing),
    ("length with a space", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3 5\r\n\r\n{INNER}", SeeNothing),
    ("empty length", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n{INNER}", SeeOrNot(&["POST /a"])),
    (
        "huge length",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nbody",
        SeeNothing,
    ),
    (
        "a length that wraps around",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551620\r\n\r\nbody",
        SeeNothing,
    ),
    // Chunks.
    (
        "chunk extension",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nbody\r\n0\r\n\r\n",
        SeeOrNot(&["POST /a"]),
    ),
    (
        "chunk extension with a line feed",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n23\r\n{INNER}\r\n0\r\n\r\n",
        SeeOrNot(&["POST /a"]),
    ),
    (
        "chunk size with a sign",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+4\r\nbody\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "chunk size 0x4",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x4\r\nbody\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "chunk size that wraps around",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000004\r\nbody\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "chunk longer than it says",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbody\r\n0\r\n\r\n",
        SeeNothing,
    ),
    (
        "chunk with line feeds",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\nbody\n0\n\n",
        SeeOrNot(&["POST /a"]),
    ),
    (
        "chunk without an end",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbodyXX0\r\n\r\n",
        SeeNothing,
    ),
    (
        "empty chunk size",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\n0\r\n\r\n",
        SeeOrNot(&["POST /a"]),
    ),
    (
        "a request after the last chunk",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
        See(&["POST /a", "GET /b"]),
    ),
    // Request lines.
    ("no version", "GET /a\r\nHost: a\r\n\r\n", SeeNothing),
    ("HTTP/2.0 in words", "GET /a HTTP/2.0\r\nHost: a\r\n\r\n", SeeNothing),
    ("HTTP/1.2", "GET /a HTTP/1.2\r\nHost: a\r\n\r\n", SeeNothing),
    ("lower case version", "GET /a http/1.1\r\nHost: a\r\n\r\n", SeeNothing),
    ("a space in the target", "GET /a /b HTTP/1.1\r\nHost: a\r\n\r\n", SeeOrNot(&["GET /a%20/b"])),
    (
        "a request in the target",
        "GET /a HTTP/1.1\r\nHost: a\r\nX: GET /smuggled HTTP/1.1\r\n\r\n",
        See(&["GET /a"]),
    ),
    ("connect", "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n{INNER}", SeeNothing),
    ("a method that is none", "GE{T /a HTTP/1.1\r\nHost: a\r\n\r\n", SeeNothing),
    // Hosts.
    ("no host", "GET /a HTTP/1.1\r\n\r\n", SeeNothing),
    ("two hosts", "GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", SeeNothing),
    ("host with a user", "GET /a HTTP/1.1\r\nHost: x@a\r\n\r\n", SeeNothing),
    ("target and host differ", "GET http://b/a HTTP/1.1\r\nHost: a\r\n\r\n", SeeOrNot(&["GET http://b/a"])),
    // Hop by hop.
    (
        "connection names the length",
        "POST /a HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 4\r\n\r\nbody",
        SeeOrNot(&["POST /a"]),
    ),
    ("connection names the host", "GET /a HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", SeeNothing),
    (
        "upgrade to h2c",
        "GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
        See(&["GET /a"]),
    ),
    ("a body with GET", "GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n\r\n{INNER}", See(&["GET /a"])),
    (
        "a body with HEAD",
        "HEAD /a HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n\r\n{INNER}",
        See(&["HEAD /a"]),
    ),
    (
        "expect and a body",
        "POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody",
        SeeOrNot(&["POST /a"]),
    ),
];

/// Sends the bytes and reads until the front closes, or has given `answers` answers and closes because we do.
async fn exchange(front: &Front, name: &str, bytes: &[u8], answers: usize) -> Vec<u8> {
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut got = Vec::new();
    let read = async {
        while count(&got) < answers {
            if stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let _ = stream.shutdown().await;
        while stream.read_buf(&mut got).await.unwrap_or(0) > 0 {}
    };
    let ended = tokio::time::timeout(Duration::from_secs(20), read).await;
    assert!(ended.is_ok(), "{name}: the front neither answers nor closes; so far {}", got.escape_ascii());
    got
}

/// Answers in what was read: heads of which the body, if any, is the target of the request.
fn count(got: &[u8]) -> usize {
    got.windows(9).filter(|nine| nine.starts_with(b"HTTP/1.1 ")).count()
}

async fn front(raw: &Raw) -> Front {
    let address = free();
    let mut plain = HttpFront::plain(address, &[]);
    plain.listener.h2c = true;
    Front::of(plain, WIDE, Pool::new(0, "a", &[raw.address()])).await
}

/// Ends all connections to the upstream, so that it has read everything there is.
async fn settle(front: &Front, raw: &Raw, generation: u64) {
    until("requests are done", async || front.gate().stats().in_flight == 0).await;
    front.resource.pool.swap(Pool::new(generation, "a", &[raw.address()])).unwrap();
    // Connections are accepted in their order: once this one is answered, none of those before it is still to come.
    let mut last = TcpStream::connect(raw.address()).await.unwrap();
    last.write_all(b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    last.read_exact(&mut answer).await.unwrap();
    drop(last);
    until("the upstream's connections are closed", async || raw.open() == 0).await;
}

fn judge(name: &str, seen: &[Seen], broken: &[String], may: May) -> Result<(), String> {
    let whats: Vec<String> = seen.iter().map(Seen::what).filter(|what| what != "GET /last").collect();
    let fits = match may {
        See(all) => whats == *all,
        SeeOrNot(all) => all.iter().zip(&whats).all(|(a, b)| *a == b) && whats.len() <= all.len(),
        SeeNothing => whats.is_empty(),
    };
    // A request whose body breaks off is begun and not finished: no upstream takes it for one.
    let cut = |why: &String| why.starts_with("a body of") || why.contains("reset");
    let rest: Vec<_> = broken.iter().filter(|why| !cut(why)).collect();
    if fits && rest.is_empty() {
        return Ok(());
    }
    Err(format!("{name}: may {may:?}, the upstream saw {whats:?} and could not read {rest:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstream_sees_what_was_sent_or_nothing() {
    assert!(TABLE.len() >= 60, "{}", TABLE.len());
    let raw = Raw::start().await;
    let front = front(&raw).await;
    let mut wrong = Vec::new();
    for (at, (name, text, may)) in TABLE.iter().enumerate() {
        let bytes = text.replace("{INNER}", INNER);
        let answers = match may {
            See(all) | SeeOrNot(all) => all.len(),
            SeeNothing => 1,
        };
        let got = exchange(&front, name, bytes.as_bytes(), answers).await;
        settle(&front, &raw, at as u64 + 1).await;
        let verdict = judge(name, &raw.take(), &raw.take_broken(), *may);
        wrong.extend(verdict.err().map(|why| format!("{why}; the client got {}", got.escape_ascii())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A field without indexing, as HPACK writes it (RFC 7541, 6.2.2), without Huffman's code.
fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    for part in [name, value] {
        assert!(part.len() < 127);
        bytes.push(part.len() as u8);
        bytes.extend_from_slice(part);
    }
    bytes
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

type Fields = &'static [(&'static str, &'static str)];

/// Fields that follow `:method POST, :scheme http, :authority a, :path /a` (the last can be replaced), and a body.
const HTTP2: &[(&str, Fields, &str, May)] = &[
    ("plain", &[], "", See(&["POST /a"])),
    ("body", &[("content-length", "4")], "body", See(&["POST /a"])),
    ("body without a length", &[], "body", See(&["POST /a"])),
    ("shorter than it says", &[("content-length", "40")], "body", SeeNothing),
    // The header may be on its way, whole with its length of nothing, before there is too much: no more than that is seen.
    ("longer than it says", &[("content-length", "0")], INNER, SeeOrNot(&["POST /a"])),
    ("coding", &[("transfer-encoding", "chunked")], "0\r\n\r\n", SeeNothing),
    (
        "coding and length",
        &[("transfer-encoding", "chunked"), ("content-length", "5")],
        "0\r\n\r\n",
        SeeNothing,
    ),
    ("line break in a value", &[("x", "1\r\ntransfer-encoding: chunked")], "0\r\n\r\n", SeeNothing),
    ("line feed in a value", &[("x", "1\ncontent-length: 35")], INNER, SeeNothing),
    ("carriage return in a value", &[("x", "1\rcontent-length: 35")], INNER, SeeNothing),
    ("a nothing in a value", &[("x", "1\x002")], "", SeeNothing),
    ("line break in a name", &[("x: 1\r\ntransfer-encoding", "chunked")], "0\r\n\r\n", SeeNothing),
    ("colon in a name", &[("transfer-encoding:chunked\r\nx", "1")], "0\r\n\r\n", SeeNothing),
    ("space in a name", &[("content-length ", "35")], INNER, SeeNothing),
    ("upper case name", &[("Content-Length", "35")], INNER, SeeNothing),
    ("connection", &[("connection", "content-length")], "", SeeNothing),
    ("keep-alive", &[("keep-alive", "1")], "", SeeNothing),
    ("upgrade", &[("upgrade", "websocket")], "", SeeNothing),
    ("te", &[("te", "gzip")], "", SeeNothing),
    ("line break in the path", &[(":path", "/a HTTP/1.1\r\nHost: a\r\n\r\nGET /smuggled")], "", SeeNothing),
    ("space in the path", &[(":path", "/a HTTP/1.1 /b")], "", SeeOrNot(&["POST /a%20HTTP/1.1%20/b"])),
    (
        "line break in the method",
        &[(":method", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\nPOST")],
        "",
        SeeNothing,
    ),
    ("line break in the authority", &[(":authority", "a\r\nx: y")], "", SeeNothing),
    ("two paths", &[(":path", "/b"), (":path", "/c")], "", SeeNothing),
    ("two hosts", &[("host", "b")], "", SeeOrNot(&["POST /a"])),
    ("unknown pseudo field", &[(":x", "1")], "", SeeNothing),
];

fn request(fields: Fields, body: &str) -> Vec<u8> {
    let mut block = Vec::new();
    let has = |name: &str| fields.iter().filter(|(key, _)| *key == name).count();
    for (name, value) in [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/a")] {
        if has(name) == 0 {
            block.extend(field(name.as_bytes(), value.as_bytes()));
        }
    }
    for (name, value) in fields {
        block.extend(field(name.as_bytes(), value.as_bytes()));
    }
    let mut bytes = preface();
    bytes.extend(frame(1, if body.is_empty() { 5 } else { 4 }, 1, &block));
    if !body.is_empty() {
        bytes.extend(frame(0, 1, 1, body.as_bytes()));
    }
    bytes
}

/// What a connection begins with.
pub(super) fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes
}

/// A GET on this stream.
pub(super) fn get(stream: u32) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/rude")];
    let block: Vec<u8> =
        fields.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect();
    frame(1, 5, stream, &block)
}

/// A reset of this stream.
pub(super) fn reset(stream: u32) -> Vec<u8> {
    frame(3, 0, stream, &8_u32.to_be_bytes())
}

/// Reads frames until the stream is over, or the connection is.
async fn over(stream: &mut TcpStream) {
    let mut bytes = Vec::new();
    loop {
        while bytes.len() >= 9 {
            let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
            if bytes.len() < 9 + length {
                break;
            }
            let (kind, flags, of) = (bytes[3], bytes[4], bytes[8]);
            bytes.drain(..9 + length);
            // A reset, going away, or the end of the answer.
            if matches!(kind, 3 | 7) || of == 1 && matches!(kind, 0 | 1) && flags & 1 == 1 {
                return;
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_brings_nothing_into_http1() {
    let raw = Raw::start().await;
    let front = front(&raw).await;
    let mut wrong = Vec::new();
    for (at, (name, fields, body, may)) in HTTP2.iter().enumerate() {
        let mut stream = TcpStream::connect(front.address).await.unwrap();
        stream.write_all(&request(fields, body)).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), over(&mut stream)).await;
        assert!(ended.is_ok(), "{name}: no end of the stream");
        drop(stream);
        settle(&front, &raw, at as u64 + 1).await;
        let seen = raw.take();
        if fields.contains(&("content-length", "0")) {
            assert!(seen.iter().all(|request| request.body.is_empty()), "{name}: {seen:?}");
        }
        wrong.extend(judge(name, &seen, &raw.take_broken(), *may).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
