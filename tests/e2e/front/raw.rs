//! An upstream that reads as strictly as it can and keeps every byte: what a front lets through is judged by what this one
//! was made to read.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// One request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Everything up to the empty line, which is left out.
    pub(super) head: String,
    /// The body, decoded.
    pub(super) body: Vec<u8>,
}

impl Seen {
    /// Method and target.
    pub(super) fn what(&self) -> String {
        let mut words = self.head.split(' ');
        format!("{} {}", words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    /// The values of a header.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    /// The value of a header that is there once.
    pub(super) fn one(&self, name: &str) -> &str {
        match self.all(name).as_slice() {
            [one] => one,
            other => panic!("{name} is there {} times in {}", other.len(), self.head),
        }
    }
}

#[derive(Default)]
struct State {
    seen: Mutex<Vec<Seen>>,
    broken: Mutex<Vec<String>>,
    open: AtomicUsize,
}

/// The upstream; answers every request with 200 and its target, but `/close…` with 200 until the connection ends.
pub(super) struct Raw {
    address: SocketAddr,
    state: Arc<State>,
    accepting: AbortHandle,
}

impl Raw {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let served = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&served);
                state.open.fetch_add(1, SeqCst);
                connections.spawn(async move {
                    if let Err(why) = serve(stream, &state).await {
                        state.broken.lock().unwrap().push(why);
                    }
                    state.open.fetch_sub(1, SeqCst);
                });
            }
        });
        Self { address, state, accepting: accepting.abort_handle() }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that are open.
    pub(super) fn open(&self) -> usize {
        self.state.open.load(SeqCst)
    }

    /// What was seen since the last time.
    pub(super) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }

    /// What could not be read since the last time.
    pub(super) fn take_broken(&self) -> Vec<String> {
        std::mem::take(&mut self.state.broken.lock().unwrap())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut stream: TcpStream, state: &State) -> Result<(), String> {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) if bytes.is_empty() => return Ok(()),
                Ok(0) | Err(_) => return Err(format!("left over: {}", bytes.escape_ascii())),
                Ok(_) => {}
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes.drain(..end + 4);
        check(&head)?;
        let mut seen = Seen { head, body: Vec::new() };
        let lengths = seen.all("content-length");
        let coding = seen.all("transfer-encoding");
        match (lengths.as_slice(), coding.as_slice()) {
            ([], []) => {}
            ([length], []) => {
                let length: usize = length.parse().map_err(|_| format!("length {length:?}"))?;
                fill(&mut stream, &mut bytes, length).await?;
                seen.body = bytes.drain(..length).collect();
            }
            ([], ["chunked"]) => seen.body = chunks(&mut stream, &mut bytes).await?,
            other => return Err(format!("framed as {other:?}: {}", seen.head)),
        }
        let (target, method) = (seen.what(), seen.head.starts_with("HEAD"));
        state.seen.lock().unwrap().push(seen);
        let body = if method { "" } else { &target };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", target.len());
        stream.write_all(answer.as_bytes()).await.map_err(|error| error.to_string())?;
    }
}

/// What no head may have.
fn check(head: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("{why}: {}", head.escape_default()));
    let mut lines = head.split("\r\n");
    let Some(first) = lines.next() else { return wrong("no request line") };
    if first.split(' ').count() != 3 || !(first.ends_with(" HTTP/1.1") || first.ends_with(" HTTP/1.0")) {
        return wrong("request line");
    }
    for line in std::iter::once(first).chain(lines) {
        if line.contains(['\r', '\n', '\0']) {
            return wrong("a bare control character");
        }
    }
    for line in head.split("\r\n").skip(1) {
        let Some((name, _)) = line.split_once(':') else { return wrong("a line without a colon") };
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(token) {
            return wrong("a name that is none");
        }
    }
    let hosts = head.split("\r\n").filter(|line| line.to_ascii_lowercase().starts_with("host:")).count();
    if hosts > 1 { wrong("two hosts") } else { Ok(()) }
}

async fn fill(stream: &mut TcpStream, bytes: &mut Vec<u8>, length: usize) -> Result<(), String> {
    while bytes.len() < length {
        if stream.read_buf(bytes).await.map_err(|error| error.to_string())? == 0 {
            return Err(format!("a body of {length} ended at {}", bytes.len()));
        }
    }
    Ok(())
}

async fn chunks(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
                break end;
            }
            let more = bytes.len() + 1;
            fill(stream, bytes, more).await?;
        };
        let line: Vec<u8> = bytes.drain(..end + 2).collect();
        let digits = String::from_utf8_lossy(&line[..end]).into_owned();
        let hexadecimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let size = usize::from_str_radix(&digits, 16).ok().filter(|_| hexadecimal);
        let size = size.ok_or_else(|| format!("chunk {digits:?}"))?;
        fill(stream, bytes, size + 2).await?;
        let chunk: Vec<u8> = bytes.drain(..size + 2).collect();
        if &chunk[size..] != b"\r\n" {
            return Err("a chunk that does not end".into());
        }
        body.extend_from_slice(&chunk[..size]);
        if size == 0 {
            return Ok(body);
        }
    }
}
