//! Tells a service manager that started us how we are: systemd's `sd_notify(3)`, a datagram to the socket that `NOTIFY_SOCKET` names.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Every listener is open.
    Ready,
    /// The process is ending.
    Stopping,
}

/// Tells it, where somebody listens. A service manager that does not take it changes nothing for us.
pub fn tell(state: State) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, ?state, "the service manager was not told");
    }
}

fn send(socket: &OsStr, state: State) -> io::Result<()> {
    let address = match socket.as_bytes() {
        // An abstract socket (unix(7)).
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let message: &[u8] = match state {
        State::Ready => b"READY=1",
        State::Stopping => b"STOPPING=1",
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_hears_what_is_told() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        let mut message = [0; 32];
        send(path.as_os_str(), State::Ready).expect("sent");
        let length = manager.recv(&mut message).expect("heard");
        assert_eq!(&message[..length], b"READY=1");
        let name = format!("godwit-notify-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name"))
            .expect("a socket");
        send(OsStr::new(&format!("@{name}")), State::Stopping).expect("sent");
        let length = manager.recv(&mut message).expect("heard");
        assert_eq!(&message[..length], b"STOPPING=1");
        assert!(send(OsStr::new("/nowhere/at/all"), State::Ready).is_err());
    }
}
