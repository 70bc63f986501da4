//! A minimal client for PostgreSQL's replication protocol, which `tokio_postgres` does not speak.
//!
//! TLS, start-up (trust, clear-text, MD5, SCRAM-SHA-256 with and without channel binding), simple queries and copy-both.
//! Sources: PostgreSQL documentation, chapters 55.2 "Message Flow", 55.3 "SASL Authentication", 55.4 "Streaming Replication
//! Protocol".

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::{ChannelBinding, Host, SslNegotiation};

use super::paced::Paced;
use super::tls::Connector;
use super::{CONNECT_TIMEOUT, Dsn, TlsMode, keep_alive, quote_literal};
use crate::error::Error;
use crate::pgoutput::reader::Reader;

/// Of a message: its tag and its length.
pub(super) const HEADER: usize = 5;
/// The largest message believed: PostgreSQL itself cannot build one of more than 1 GiB, its header apart.
const MESSAGE_LIMIT: usize = (1 << 30) + (1 << 16);
/// Of the addresses of one name each is tried so much later than the one before it (RFC 8305).
const APART: Duration = Duration::from_millis(250);
/// How much is read at once.
const READ_SIZE: usize = 256 * 1024;

/// Settings that make the text output of values independent of the server's, the database's and the role's defaults,
/// and keep the server from cutting a long wait short.
pub(crate) const SESSION_SETTINGS: [(&str, &str); 14] = [
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("timezone", "UTC"),
    // Money travels as the C locale writes it.
    ("lc_monetary", "C"),
    ("xmloption", "content"),
    ("array_nulls", "on"),
    ("search_path", ""),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    // See `notice`.
    ("client_min_messages", "warning"),
];

/// SQL that sets [`SESSION_SETTINGS`] and `more`, with `local` until the end of the transaction. A setting that this server does not
/// know is left out.
pub(crate) fn settings_sql(more: &[(&str, &str)], local: bool) -> String {
    let settings: Vec<String> = SESSION_SETTINGS
        .iter()
        .chain(more)
        .map(|(name, value)| format!("({}, {})", quote_literal(name), quote_literal(value)))
        .collect();
    format!(
        "DO $$ BEGIN PERFORM pg_catalog.set_config(s.name, s.value, {local}) FROM (VALUES {}) AS s(name, value) \
         JOIN pg_catalog.pg_settings known ON lower(known.name) = s.name; END $$",
        settings.join(", ")
    )
}

/// A connection that bytes go over, encrypted or not.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// One that can be asked about.
pub trait Peek: Socket {
    /// Whether the system has something from the other side, be it its end: who waits for that may not have been told yet. A system call.
    fn holds_input(&self) -> bool;
}

impl Peek for TcpStream {
    fn holds_input(&self) -> bool {
        holds_input(SockRef::from(self))
    }
}

impl Peek for UnixStream {
    fn holds_input(&self) -> bool {
        holds_input(SockRef::from(self))
    }
}

/// Within a process whoever waits is told.
impl Peek for DuplexStream {
    fn holds_input(&self) -> bool {
        false
    }
}

pub(super) fn holds_input(socket: SockRef<'_>) -> bool {
    let looked = socket.peek(&mut [MaybeUninit::uninit()]);
    // An error is its end.
    looked.map_or_else(|error| error.kind() != io::ErrorKind::WouldBlock, |_| true)
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The addresses that connection parameters name, in order. One port counts for every host.
pub(crate) fn addresses(dsn: &Dsn) -> Vec<Address> {
    let ports = dsn.get_ports();
    let port = |at: usize| ports.get(at).or(ports.first()).copied().unwrap_or(5432);
    let numbers = dsn.get_hostaddrs();
    if !numbers.is_empty() {
        return numbers.iter().enumerate().map(|(at, ip)| Address::Tcp(ip.to_string(), port(at))).collect();
    }
    dsn.get_hosts()
        .iter()
        .enumerate()
        .map(|(at, host)| match host {
            Host::Tcp(name) => Address::Tcp(name.clone(), port(at)),
            Host::Unix(directory) => Address::Unix(directory.join(format!(".s.PGSQL.{}", port(at)))),
        })
        .collect()
}

/// One message from the server.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) tag: u8,
    pub(crate) body: Bytes,
}

/// A row of a simple query's result.
pub(crate) type TextRow = Vec<Option<Bytes>>;

/// A connection to a server on which nothing was said yet but what TLS takes.
pub struct Dialed {
    /// Read and write here.
    pub socket: Box<dyn Peek>,
    /// What SCRAM-SHA-256-PLUS binds to (`tls-server-end-point`); none: no TLS, or a certificate that names no hash.
    pub end_point: Option<Vec<u8>>,
}

/// Connects to the server of `dsn` with the TLS that it demands, for callers that speak the protocol themselves. The hosts
/// are tried in order, and share `connect_timeout`. Says nothing: the start-up packet is the caller's.
pub async fn dial(dsn: &Dsn) -> Result<Dialed, Error> {
    let addresses = addresses(dsn);
    let whole = dsn.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
    let limit = whole / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut failure = Error::Unready("the connection parameters name no host".into());
    for (at, address) in addresses.into_iter().enumerate() {
        let context = format!("connect to {address}");
        let name = certified_name(dsn, at, &address);
        match within(limit, &context, dial_at(dsn, &address, name, |socket| socket, &context)).await {
            Ok((socket, end_point)) => return Ok(Dialed { socket, end_point }),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Where addresses are given as numbers, the names beside them are what certificates are made for.
fn certified_name<'a>(dsn: &'a Dsn, at: usize, address: &'a Address) -> &'a str {
    match (dsn.get_hosts().get(at), address) {
        (Some(Host::Tcp(name)), _) | (_, Address::Tcp(name, _)) => name,
        (_, Address::Unix(_)) => "",
    }
}

/// A socket to this address, secured as `dsn` demands; `dress` is what a TCP socket is wrapped in.
async fn dial_at<S: Peek + 'static>(
    dsn: &Dsn,
    address: &Address,
    name: &str,
    dress: impl FnOnce(TcpStream) -> S,
    context: &str,
) -> Result<(Box<dyn Peek>, Option<Vec<u8>>), Error> {
    match address {
        Address::Tcp(host, port) => {
            let found = tokio::net::lookup_host((host.as_str(), *port)).await.map_err(Error::io(context))?;
            let found: Vec<SocketAddr> = found.collect();
            let socket = reach(&found).await.map_err(Error::io(context))?;
            prepare(&socket, dsn).map_err(Error::io(context))?;
            secure(dsn, dress(socket), name, context).await
        }
        Address::Unix(_) if !matches!(dsn.tls.mode, TlsMode::Disable | TlsMode::Prefer) => {
            Err(Error::Unready(format!(
                "{context}: TLS is demanded (sslmode={}), which a Unix socket does not have",
                dsn.tls.mode.as_str()
            )))
        }
        Address::Unix(path) => {
            let socket = UnixStream::connect(path).await.map_err(Error::io(context))?;
            Ok((Box::new(socket), None))
        }
    }
}

/// Connects to the first of a name's addresses that takes a connection. Each is tried [`APART`] after the one before it, or as soon as that has
/// failed: one that does not answer keeps none from being tried.
async fn reach(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let (mut left, mut tries) = (addresses.iter(), FuturesUnordered::new());
    let mut next = left.next();
    loop {
        tries.extend(next.take().map(|address| TcpStream::connect(*address)));
        tokio::select! {
            tried = tries.next() => match tried {
                Some(Ok(socket)) => return Ok(socket),
                Some(Err(error)) => {
                    failure = error;
                    next = left.next();
                }
                None => return Err(failure),
            },
            () = tokio::time::sleep(APART), if left.len() > 0 => next = left.next(),
        }
    }
}

/// What is sent goes at once, and a server that has fallen silent is noticed, also while it owes an answer.
fn prepare(socket: &TcpStream, dsn: &Dsn) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut parameters = dsn.negotiated();
    keep_alive(&mut parameters);
    let socket = SockRef::from(socket);
    if parameters.get_keepalives() {
        let mut keepalive = TcpKeepalive::new().with_time(parameters.get_keepalives_idle());
        if let Some(interval) = parameters.get_keepalives_interval() {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(retries) = parameters.get_keepalives_retries() {
            keepalive = keepalive.with_retries(retries);
        }
        socket.set_tcp_keepalive(&keepalive)?;
    }
    parameters.get_tcp_user_timeout().map_or(Ok(()), |unheard| socket.set_tcp_user_timeout(Some(*unheard)))
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `replication=database`.
    Replication,
    /// Statements and COPY: it takes no walsender.
    Sql,
}

impl Purpose {
    fn context(self, address: &Address) -> String {
        match self {
            Self::Replication => format!("open a replication connection to {address}"),
            Self::Sql => format!("connect to {address}"),
        }
    }
}

/// A connection of our own.
pub(crate) struct Connection {
    socket: Box<dyn Peek>,
    pub(super) received: BytesMut,
    /// Whole messages on their way out: a cancelled send is finished by whatever call comes next.
    outgoing: BytesMut,
}

impl Connection {
    /// Connects and authenticates; the addresses are tried in order.
    pub(crate) async fn open(dsn: &Dsn, application_name: &str, purpose: Purpose) -> Result<Self, Error> {
        let limit = dsn.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        let mut failure = Error::Unready("the connection parameters name no host".into());
        for (at, address) in addresses(dsn).into_iter().enumerate() {
            let context = purpose.context(&address);
            let name = certified_name(dsn, at, &address);
            let opening = Self::open_at(dsn, application_name, purpose, &address, name);
            match within(limit, &context, opening).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Over a socket on which nothing was said yet.
    pub(super) fn over(socket: Box<dyn Peek>) -> Self {
        Self { socket, received: BytesMut::new(), outgoing: BytesMut::new() }
    }

    async fn open_at(
        dsn: &Dsn,
        application_name: &str,
        purpose: Purpose,
        address: &Address,
        name: &str,
    ) -> Result<Self, Error> {
        let context = || purpose.context(address);
        let (socket, end_point) = dial_at(dsn, address, name, Paced::new, &context()).await?;
        let mut this = Self::over(socket);
        let user = dsn
            .get_user()
            .ok_or_else(|| Error::Unready(format!("no user is given for the connection to {address}")))?;
        let mut parameters = vec![
            ("user", user),
            ("database", dsn.get_dbname().unwrap_or(user)),
            ("client_encoding", "UTF8"),
            ("application_name", application_name),
        ];
        parameters.extend((purpose == Purpose::Replication).then_some(("replication", "database")));
        parameters.extend(dsn.get_options().map(|options| ("options", options)));
        parameters.extend(SESSION_SETTINGS);
        frontend::startup_message(parameters, &mut this.outgoing).map_err(Error::io(context()))?;
        let login =
            Login { user, password: dsn.get_password(), binding: dsn.get_channel_binding(), end_point };
        this.authenticate(&login, &context()).await?;
        Ok(this)
    }

    async fn authenticate(&mut self, login: &Login<'_>, context: &str) -> Result<(), Error> {
        let mut scram: Option<sasl::ScramSha256> = None;
        let mut bound = false;
        loop {
            let frame = self.frame(context).await?;
            let mut reader = match frame.tag {
                b'R' => Reader::new("authentication", frame.body),
                b'E' => return Err(server_error(context, frame.body)),
                b'Z' => return Ok(()),
                // Parameter status, key data, notices.
                b'S' | b'K' | b'N' => continue,
                tag => return Err(unexpected(tag, context)),
            };
            let method = reader.i32("method")?;
            if scram.is_some() && !matches!(method, 11 | 12) {
                return Err(unproven(context, "it leaves the exchange before its end"));
            }
            // Whatever else the server is content with would not show that it is the one at the other end of the TLS.
            if matches!(method, 0 | 3 | 5) && login.binding == ChannelBinding::Require && !bound {
                return Err(Error::Unready(format!(
                    "{context}: channel_binding=require, and the server asks for something else than SCRAM-SHA-256-PLUS"
                )));
            }
            match method {
                0 => {}
                3 => frontend::password_message(login.password("a password", context)?, &mut self.outgoing)
                    .map_err(Error::io(context))?,
                5 => {
                    let salt = reader.u32("salt")?.to_be_bytes();
                    let password = login.password("an MD5 password", context)?;
                    let hash = md5_hash(login.user.as_bytes(), password, salt);
                    frontend::password_message(hash.as_bytes(), &mut self.outgoing)
                        .map_err(Error::io(context))?;
                }
                10 => {
                    let mut offered = Vec::new();
                    while reader.remaining() > 1 {
                        offered.push(reader.text("mechanism")?);
                    }
                    let (mechanism, binding) = login.mechanism(&offered, context)?;
                    bound = mechanism == sasl::SCRAM_SHA_256_PLUS;
                    let exchange = sasl::ScramSha256::new(login.password("SCRAM-SHA-256", context)?, binding);
                    frontend::sasl_initial_response(mechanism, exchange.message(), &mut self.outgoing)
                        .map_err(Error::io(context))?;
                    scram = Some(exchange);
                }
                11 => {
                    let exchange = scram.as_mut().ok_or_else(|| unexpected(b'R', context))?;
                    exchange.update(&reader.rest()).map_err(|error| unproven(context, error))?;
                    frontend::sasl_response(exchange.message(), &mut self.outgoing)
                        .map_err(Error::io(context))?;
                }
                12 => {
                    // The server's proof: a server that does not know the password is refused here.
                    let mut exchange = scram.take().ok_or_else(|| unexpected(b'R', context))?;
                    exchange.finish(&reader.rest()).map_err(|error| unproven(context, error))?;
                }
                other => {
                    return Err(Error::Unready(format!(
                        "{context}: the server asks for authentication method {other}, which is not supported: \
                         use scram-sha-256"
                    )));
                }
            }
        }
    }

    /// Runs one command and returns its rows.
    pub(crate) async fn query(&mut self, sql: &str, context: &str) -> Result<Vec<TextRow>, Error> {
        frontend::query(sql, &mut self.outgoing).map_err(Error::io(context))?;
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            let frame = self.frame(context).await?;
            match frame.tag {
                b'D' => rows.push(text_row(frame.body)?),
                b'E' => failure = Some(server_error(context, frame.body)),
                b'Z' => return failure.map_or(Ok(rows), Err),
                b'T' | b'C' | b'N' | b'S' | b'I' => {}
                tag => return Err(unexpected(tag, context)),
            }
        }
    }

    /// Runs the command that turns the connection into a two-way copy.
    pub(crate) async fn copy_both(&mut self, sql: &str, context: &str) -> Result<(), Error> {
        self.begin_copy(sql, b'W', context).await
    }

    /// Runs a command that begins a copy, as the message `begins` tells.
    pub(super) async fn begin_copy(&mut self, sql: &str, begins: u8, context: &str) -> Result<(), Error> {
        frontend::query(sql, &mut self.outgoing).map_err(Error::io(context))?;
        loop {
            let frame = self.frame(context).await?;
            match frame.tag {
                tag if tag == begins => return Ok(()),
                b'E' => return Err(server_error(context, frame.body)),
                b'N' | b'S' => {}
                tag => return Err(unexpected(tag, context)),
            }
        }
    }

    /// Queues a simple query; its answer is for [`Self::buffered`].
    pub(crate) fn queue_query(&mut self, sql: &str) -> Result<(), Error> {
        frontend::query(sql, &mut self.outgoing).map_err(Error::io("send on the replication connection"))
    }

    /// Queues the content of one copy message; [`Self::flush`] or [`Self::fill`] sends it.
    pub(crate) fn queue_copy(&mut self, content: &[u8]) -> Result<(), Error> {
        frontend::CopyData::new(content)
            .map(|message| message.write(&mut self.outgoing))
            .map_err(Error::io("send on the replication connection"))
    }

    /// Queues the end of the content of a COPY.
    pub(crate) fn queue_copy_done(&mut self) {
        frontend::copy_done(&mut self.outgoing);
    }

    /// Bytes that were queued and not sent yet.
    pub(crate) fn unsent(&self) -> usize {
        self.outgoing.len()
    }

    /// Sends what is queued. Cancel-safe.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| {
            while !self.outgoing.is_empty() {
                match Pin::new(&mut self.socket).poll_write(cx, &self.outgoing) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(count)) => self.outgoing.advance(count),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            // TLS keeps what the socket did not take.
            Pin::new(&mut self.socket).poll_flush(cx)
        })
        .await
    }

    /// Waits for more bytes, sending meanwhile what is queued. Cancel-safe.
    pub(crate) async fn fill(&mut self) -> io::Result<()> {
        poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = pin!(self.flush()).poll(cx) {
                return Poll::Ready(Err(error));
            }
            self.received.reserve(READ_SIZE / 4);
            let read = pin!(self.socket.read_buf(&mut self.received));
            read.poll(cx).map(|count| match count? {
                0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
                _ => Ok(()),
            })
        })
        .await
    }

    /// The next whole message among the bytes received, if there is one.
    pub(crate) fn buffered(&mut self) -> Result<Option<Frame>, Error> {
        let Some((tag, length)) = Self::header(&self.received)? else { return Ok(None) };
        if self.received.len() < length + 1 {
            return Ok(None);
        }
        let mut body = self.received.split_to(length + 1).freeze();
        if length > READ_SIZE {
            // Or the room for it would stay for as long as the connection does.
            self.received = BytesMut::from(&self.received[..]);
        }
        body.advance(HEADER);
        Ok(Some(Frame { tag, body }))
    }

    /// Tag and length of the message that begins here, if that much is there. The length counts itself, not the tag.
    pub(super) fn header(bytes: &[u8]) -> Result<Option<(u8, usize)>, Error> {
        let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(4..=MESSAGE_LIMIT).contains(&length) {
            return Err(Error::Protocol(format!("a message {:?} of {length} bytes", char::from(tag))));
        }
        Ok(Some((tag, length)))
    }

    pub(crate) async fn frame(&mut self, context: &str) -> Result<Frame, Error> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.fill().await.map_err(Error::io(context))?;
        }
    }
}

/// Who logs in, and to what the exchange can be bound.
struct Login<'a> {
    user: &'a str,
    password: Option<&'a [u8]>,
    binding: ChannelBinding,
    /// Of the server's certificate, where there is TLS.
    end_point: Option<Vec<u8>>,
}

impl Login<'_> {
    fn password(&self, method: &str, context: &str) -> Result<&[u8], Error> {
        self.password.ok_or_else(|| {
            Error::Unready(format!("{context}: the server asks for {method} and no password is given"))
        })
    }

    /// The best of what is offered. Where we could bind and the server says it cannot, the exchange tells it so: a third party
    /// that took the offer away is found out.
    fn mechanism(
        &self,
        offered: &[String],
        context: &str,
    ) -> Result<(&'static str, sasl::ChannelBinding), Error> {
        let offers = |mechanism: &str| offered.iter().any(|offer| offer == mechanism);
        let end_point = self.end_point.as_ref().filter(|_| self.binding != ChannelBinding::Disable);
        match end_point {
            Some(hash) if offers(sasl::SCRAM_SHA_256_PLUS) => {
                return Ok((
                    sasl::SCRAM_SHA_256_PLUS,
                    sasl::ChannelBinding::tls_server_end_point(hash.clone()),
                ));
            }
            _ if self.binding == ChannelBinding::Require => {
                return Err(Error::Unready(format!(
                    "{context}: channel_binding=require, which this connection cannot have (it needs TLS, a certificate \
                     whose signature names a hash, and SCRAM-SHA-256-PLUS; the server offers {})",
                    offered.join(", ")
                )));
            }
            _ if !offers(sasl::SCRAM_SHA_256) => {
                return Err(Error::Unready(format!(
                    "{context}: the server offers only {}, not SCRAM-SHA-256",
                    offered.join(", ")
                )));
            }
            _ => {}
        }
        let binding = match end_point {
            Some(_) => sasl::ChannelBinding::unrequested(),
            None => sasl::ChannelBinding::unsupported(),
        };
        Ok((sasl::SCRAM_SHA_256, binding))
    }
}

/// Puts TLS on a fresh connection where that is wanted; gives what an exchange can be bound to.
async fn secure<S: Peek + 'static>(
    dsn: &Dsn,
    mut socket: S,
    name: &str,
    context: &str,
) -> Result<(Box<dyn Peek>, Option<Vec<u8>>), Error> {
    let mode = dsn.tls.mode;
    if mode == TlsMode::Disable {
        return Ok((Box::new(socket), None));
    }
    let connector = Connector::new(&dsn.tls)?;
    if dsn.get_ssl_negotiation() == SslNegotiation::Direct {
        if mode == TlsMode::Prefer {
            return Err(Error::Unready(format!(
                "{context}: sslnegotiation=direct knows no way without TLS: use sslmode=verify-full, or at least require"
            )));
        }
    } else {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        socket.write_all(&request).await.map_err(Error::io(context))?;
        // One byte and no more: whatever came behind it in the clear would be read as a broken handshake.
        match (socket.read_u8().await.map_err(Error::io(context))?, mode) {
            (b'S', _) => {}
            (_, TlsMode::Prefer) => return Ok((Box::new(socket), None)),
            _ => {
                return Err(Error::Unready(format!(
                    "{context}: the server has no TLS (ssl = off), and sslmode={} demands it",
                    mode.as_str()
                )));
            }
        }
    }
    let secured = connector.secure(name, socket).await.map_err(Error::io(format!("{context} with TLS")))?;
    let end_point = secured.end_point();
    Ok((Box::new(secured), end_point))
}

/// What the server's ErrorResponse says.
pub(crate) fn server_error(context: &str, body: Bytes) -> Error {
    let mut reader = Reader::new("error", body);
    let (mut sqlstate, mut message) = (String::new(), String::new());
    while let Ok(field @ 1..) = reader.u8("field") {
        let Ok(text) = reader.text("text") else { break };
        match field {
            b'C' => sqlstate = text,
            b'M' => message = text,
            b'D' => {
                message.push_str(": ");
                message.push_str(&text);
            }
            _ => {}
        }
    }
    Error::Server { context: context.to_owned(), sqlstate, message }
}

/// What the server's NoticeResponse means where it decodes changes. From 18 on it only warns that a publication was not there when they were made, and
/// leaves them out: an error here, as before 18.
pub(crate) fn notice(context: &str, body: Bytes) -> Result<(), Error> {
    let mut reader = Reader::new("notice", body.clone());
    while let Ok(field @ 1..) = reader.u8("field") {
        let Ok(text) = reader.text("text") else { break };
        // The words are in the server's language.
        if field == b'R' && text == "LoadPublications" {
            let mut error = server_error(context, body);
            if let Error::Server { sqlstate, message, .. } = &mut error {
                *message = format!("publication does not exist: {message}");
                "42704".clone_into(sqlstate);
            }
            return Err(error);
        }
    }
    Ok(())
}

pub(crate) fn text_row(body: Bytes) -> Result<TextRow, Error> {
    let mut reader = Reader::new("row", body);
    let count = usize::from(reader.u16("column count")?);
    let mut row = Vec::with_capacity(count.min(reader.remaining()));
    for _ in 0..count {
        let length = reader.i32("value length")?;
        row.push(match usize::try_from(length) {
            Ok(length) => Some(reader.take(length, "value")?),
            Err(_) => None,
        });
    }
    Ok(row)
}

fn unproven(context: &str, why: impl fmt::Display) -> Error {
    Error::Unready(format!(
        "{context}: the server did not prove that it knows the password ({why}): it is another server, or somebody is between"
    ))
}

pub(crate) fn unexpected(tag: u8, context: &str) -> Error {
    Error::Protocol(format!("unexpected message {:?} while trying to {context}", char::from(tag)))
}

/// Runs `work` for at most `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    context: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::Io { context: context.to_owned(), source: io::ErrorKind::TimedOut.into() })
    })
}

#[cfg(test)]
mod tests;
