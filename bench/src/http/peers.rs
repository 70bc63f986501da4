//! The proxies and the upstream, as processes of ours with one worker each.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use godwit::clock;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::front::{TICK, cpu_ticks};

/// A proxy that runs.
pub(super) struct Peer {
    pub(super) name: &'static str,
    /// Where it speaks HTTP/1.1 in the clear.
    pub(super) clear: SocketAddr,
    /// Where it speaks TLS.
    pub(super) secure: SocketAddr,
    child: Running,
}

/// An nginx that answers from memory.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    _child: Running,
}

/// How long a process may take to end by itself.
const ENDING: Duration = Duration::from_secs(5);

/// A process, killed with what it started when dropped.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).spawn();
        child.map(Self).with_context(|| format!("{name} cannot be run: the bench's make target installs it"))
    }

    /// To it and the processes that it started.
    fn signal(&self, signal: Signal) -> Result<()> {
        let group = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        Ok(kill_process_group(group, signal)?)
    }

    /// It, and the processes that it started.
    fn all(&self) -> Result<Vec<u32>> {
        let own = self.0.id();
        let mut found = vec![own];
        for entry in std::fs::read_dir("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat
                .rsplit_once(')')
                .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
            if parent == Some(own) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// User and system time of its processes so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut ticks = 0;
        for pid in self.all()? {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            ticks += cpu_ticks(&stat).unwrap_or(0);
        }
        Ok(TICK * ticks)
    }

    /// What its processes have in memory.
    pub(crate) fn memory_mib(&self) -> Result<f64> {
        let mut kib = 0.0;
        for pid in self.all()? {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find(|line| line.starts_with("VmRSS:"));
            kib += line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).unwrap_or(0.0);
        }
        Ok(kib / 1024.0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its workers end with it: they are asked to, and share its group. It may have ended already.
        let _ = self.signal(Signal::TERM);
        let deadline = clock::monotonic() + ENDING;
        while matches!(self.0.try_wait(), Ok(None)) && clock::monotonic() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Some wait for their clients, who are other children of ours.
        let _ = self.signal(Signal::KILL);
        let _ = self.0.wait();
    }
}

impl Peer {
    /// User and system time of its processes so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        self.child.cpu()
    }

    /// What its processes have in memory.
    pub(super) fn memory_mib(&self) -> Result<f64> {
        self.child.memory_mib()
    }
}

impl Upstream {
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let address = free()?;
        let body = "x".repeat(1024);
        let server = format!(
            "server {{ listen {address}; keepalive_requests 1000000000; location / {{ default_type text/plain; return 200 '{body}'; }} }}"
        );
        let child = nginx(folder, "upstream", &server)?;
        until_listening(address)?;
        Ok(Self { address, _child: child })
    }
}

/// All proxies, or those named.
pub(super) fn start(folder: &Path, upstream: SocketAddr, only: &[String]) -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for name in ["pingora", "godwit", "nginx", "haproxy"] {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        let (clear, secure) = (free()?, free()?);
        let child = match name {
            "nginx" => nginx(folder, name, &nginx_proxy(folder, clear, secure, upstream))?,
            "haproxy" => haproxy(folder, clear, secure, upstream)?,
            own => Running::start(
                Command::new(std::env::current_exe()?)
                    .args(["http-proxy", own])
                    .args([clear, secure, upstream].map(|address| address.to_string()))
                    .arg(folder),
            )?,
        };
        for address in [clear, secure] {
            until_listening(address).with_context(|| format!("{name} does not listen"))?;
        }
        peers.push(Peer { name, clear, secure, child });
    }
    Ok(peers)
}

pub(crate) fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

pub(crate) fn until_listening(address: SocketAddr) -> Result<()> {
    for _ in 0..2000 {
        if TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("nothing listens at {address}")
}

fn nginx(folder: &Path, name: &str, servers: &str) -> Result<Running> {
    let own = folder.join(name);
    std::fs::create_dir_all(&own)?;
    let at = own.display();
    let config = format!(
        "worker_processes 1;\npid {at}/pid;\nerror_log {at}/error.log crit;\ndaemon off;\nevents {{ worker_connections 20000; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n{servers}\n}}\n"
    );
    let path = own.join("nginx.conf");
    std::fs::write(&path, config)?;
    Running::start(Command::new("nginx").arg("-c").arg(&path).arg("-p").arg(&own))
}

fn nginx_proxy(folder: &Path, clear: SocketAddr, secure: SocketAddr, upstream: SocketAddr) -> String {
    let (cert, key) = (folder.join("bench.example.pem"), folder.join("bench.example.key"));
    format!(
        "upstream u {{ server {upstream}; keepalive 512; keepalive_requests 1000000000; }}\n\
         server {{ listen {clear}; listen {secure} ssl http2;\n\
         ssl_certificate {}; ssl_certificate_key {};\n\
         location / {{ proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $host;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}",
        cert.display(),
        key.display()
    )
}

fn haproxy(folder: &Path, clear: SocketAddr, secure: SocketAddr, upstream: SocketAddr) -> Result<Running> {
    let pem = folder.join("haproxy.pem");
    let both =
        ["bench.example.pem", "bench.example.key"].map(|name| std::fs::read_to_string(folder.join(name)));
    let [cert, key] = both;
    std::fs::write(&pem, cert? + &key?)?;
    let config = format!(
        "global\n nbthread 1\n maxconn 12000\n no strict-limits\ndefaults\n mode http\n option http-keep-alive\n option forwardfor\n timeout client 60s\n \
         timeout server 60s\n timeout connect 2s\n http-reuse always\nfrontend f\n bind {clear}\n bind {secure} ssl crt {} alpn h2,http/1.1\n \
         default_backend b\nbackend b\n server s {upstream} pool-max-conn 512\n",
        pem.display()
    );
    let path = folder.join("haproxy.cfg");
    std::fs::write(&path, config)?;
    Running::start(Command::new("haproxy").arg("-db").arg("-q").arg("-f").arg(&path))
}
