//! Accepting connections: each in a task of its own, with a deadline for its set-up and limits
//! per source address and per peer, so that a slow or hostile client holds nobody up.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

use super::stream::{Cut, Link, explain, prepare, write_answer};
use super::{Pki, Protocol, TransportError, pki, ssh};

/// Longest time from the accepted connection to the greeting.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most connections of one source address that have not proved who they are.
pub const HANDSHAKES_PER_SOURCE: u32 = 16;
/// Most such connections in all.
pub const HANDSHAKES: u32 = 512;
/// Most connections of one peer.
pub const CONNECTIONS_PER_PEER: u32 = 32;
/// A source's refusals are logged as warnings this often, the others at debug level.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// The same refusal of the same source is: a peer that is refused dials again every few seconds.
const WARN_SAME_EVERY: Duration = Duration::from_secs(600);

/// A connection whose other side proved to be a configured peer.
#[derive(Debug)]
pub struct Incoming {
    /// The peer's configured name.
    pub peer: String,
    /// What the connection is for.
    pub protocol: Protocol,
    /// The stream.
    pub link: Link,
}

/// A bound listening socket.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    shared: Arc<Shared>,
}

/// The socket for peers that come by ssh.
#[derive(Debug)]
pub struct SshListener {
    unix: UnixListener,
    peers: Arc<Vec<String>>,
    connections: Arc<Counters<String>>,
}

impl SshListener {
    /// Binds `path`. Only the named `peers` may come this way. Must be called in a runtime.
    pub fn bind(path: &Path, peers: Vec<String>) -> Result<Self, TransportError> {
        Ok(Self {
            unix: ssh::bind(path)?,
            peers: Arc::new(peers),
            connections: Arc::new(Counters::new(CONNECTIONS_PER_PEER, HANDSHAKES)),
        })
    }

    /// As [`Listener::run`].
    pub async fn run<H, F>(self, handle: H)
    where
        H: Fn(Incoming) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        loop {
            let stream = match self.unix.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    warn!("cannot accept a connection by ssh: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (peers, connections) = (self.peers.clone(), self.connections.clone());
            let handle = handle.clone();
            tokio::spawn(async move {
                let set_up = greet(stream, &peers, &connections);
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, set_up).await {
                    Ok(Ok((incoming, _counted))) => handle(incoming).await,
                    Ok(Err(reason)) => warn!("refused a connection by ssh: {reason}"),
                    Err(_) => warn!("refused a connection by ssh: no first line in time"),
                }
            });
        }
    }
}

/// Who comes by ssh, and whether it may.
async fn greet(
    mut stream: UnixStream,
    peers: &[String],
    connections: &Arc<Counters<String>>,
) -> Result<(Incoming, Slot<String>), String> {
    let admitted = ssh::hello(&mut stream).await.and_then(|(peer, protocol)| {
        if !peers.contains(&peer) {
            let peer: String = peer.chars().filter(|c| !c.is_control()).collect();
            return Err(format!(
                "'{peer}' is not a configured peer that comes by ssh"
            ));
        }
        let slot = connections
            .take(peer.clone())
            .ok_or_else(|| format!("'{peer}' has {CONNECTIONS_PER_PEER} connections already"))?;
        Ok((peer, protocol, slot))
    });
    let answer = admitted.as_ref().map(|_| ()).map_err(String::as_str);
    let written = write_answer(&mut stream, answer).await;
    let (peer, protocol, slot) = admitted?;
    written.map_err(|e| e.to_string())?;
    debug!(peer, ?protocol, "connection by ssh accepted");
    let std = stream.into_std().map_err(|e| e.to_string())?;
    let cut = Cut::Unix(std.try_clone().map_err(|e| e.to_string())?);
    let stream = Box::new(UnixStream::from_std(std).map_err(|e| e.to_string())?);
    let incoming = Incoming {
        peer,
        protocol,
        link: Link { stream, cut },
    };
    Ok((incoming, slot))
}

#[derive(Debug)]
struct Shared {
    pki: Pki,
    peers: Vec<(String, ServerName<'static>)>,
    dead_after: Duration,
    sources: Arc<Counters<IpAddr>>,
    connections: Arc<Counters<String>>,
    warned: Mutex<HashMap<IpAddr, (Instant, String)>>,
}

impl Listener {
    /// Binds `address`. Connections are accepted from the named `peers` only; one that is no
    /// longer acknowledged ends after about `dead_after`.
    pub async fn bind(
        address: SocketAddr,
        pki: Pki,
        peers: Vec<(String, ServerName<'static>)>,
        dead_after: Duration,
    ) -> Result<Self, TransportError> {
        let tcp = TcpListener::bind(address)
            .await
            .map_err(|source| TransportError::Listen { address, source })?;
        let shared = Shared {
            pki,
            peers,
            dead_after,
            sources: Arc::new(Counters::new(HANDSHAKES_PER_SOURCE, HANDSHAKES)),
            connections: Arc::new(Counters::new(CONNECTIONS_PER_PEER, u32::MAX)),
            warned: Mutex::default(),
        };
        Ok(Self {
            tcp,
            shared: Arc::new(shared),
        })
    }

    /// Where it listens; tells the port when 0 was asked for.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Accepts for ever and runs `handle` in a task per authenticated connection; the connection
    /// counts against its peer's limit until that ends. Dropping the future stops accepting.
    pub async fn run<H, F>(self, handle: H)
    where
        H: Fn(Incoming) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        loop {
            let (tcp, from) = match self.tcp.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    // Out of file descriptors, mostly: give those that are open time to end.
                    warn!("cannot accept a peer's connection: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(slot) = self.shared.sources.take(from.ip()) else {
                self.shared
                    .refuse(from, "too many connections from there at once");
                continue;
            };
            let (shared, handle) = (self.shared.clone(), handle.clone());
            tokio::spawn(async move {
                let set_up = tokio::time::timeout(HANDSHAKE_TIMEOUT, shared.set_up(tcp, from));
                let done = set_up.await;
                drop(slot);
                match done {
                    Ok(Ok((incoming, _counted))) => handle(incoming).await,
                    Ok(Err(reason)) => shared.refuse(from, &reason),
                    Err(_) => shared.refuse(from, "no complete TLS handshake in time"),
                }
            });
        }
    }
}

impl Shared {
    async fn set_up(
        &self,
        tcp: TcpStream,
        from: SocketAddr,
    ) -> Result<(Incoming, Slot<String>), String> {
        let (tcp, cut) = prepare(tcp, self.dead_after).map_err(|e| e.to_string())?;
        let tls = TlsAcceptor::from(self.pki.server.clone())
            .accept(tcp)
            .await
            .map_err(|e| explain(&e))?;
        let admitted = self.admit(&tls);
        let mut link = Link {
            stream: Box::new(tls),
            cut,
        };
        let answer = admitted.as_ref().map(|_| ()).map_err(String::as_str);
        let written = write_answer(&mut link.stream, answer).await;
        let (peer, protocol, slot) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                farewell(link).await;
                return Err(reason);
            }
        };
        written.map_err(|e| explain(&e))?;
        debug!(peer, ?protocol, %from, "connection accepted");
        let incoming = Incoming {
            peer,
            protocol,
            link,
        };
        Ok((incoming, slot))
    }

    /// Who is there, and whether one more of its connections is allowed.
    fn admit(
        &self,
        tls: &TlsStream<TcpStream>,
    ) -> Result<(String, Protocol, Slot<String>), String> {
        let session = tls.get_ref().1;
        let certificate = session
            .peer_certificates()
            .and_then(<[_]>::first)
            .ok_or_else(|| "it showed no certificate".to_owned())?;
        let peer = pki::identify(certificate, &self.peers)?;
        let protocol = Protocol::from_alpn(session.alpn_protocol())
            .ok_or_else(|| "it asked for no protocol (ALPN) that droverd speaks".to_owned())?;
        let slot = self
            .connections
            .take(peer.to_owned())
            .ok_or_else(|| format!("'{peer}' has {CONNECTIONS_PER_PEER} connections already"))?;
        Ok((peer.to_owned(), protocol, slot))
    }

    fn refuse(&self, from: SocketAddr, reason: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let source = from.ip();
        let quiet = warned.get(&source).is_some_and(|(at, what)| {
            let every = if what == reason {
                WARN_SAME_EVERY
            } else {
                WARN_EVERY
            };
            now.duration_since(*at) < every
        });
        if quiet {
            debug!(%from, "refused a connection: {reason}");
            return;
        }
        if warned.len() >= 1024 {
            warned.retain(|_, (at, _)| now.duration_since(*at) < WARN_EVERY);
            if warned.len() >= 1024 {
                info!("many sources are refused; their next refusals are logged again");
                warned.clear();
            }
        }
        warned.insert(source, (now, reason.to_owned()));
        drop(warned);
        warn!(%from, "refused a connection: {reason}");
    }
}

/// Lets the other side read the refusal before the connection ends.
async fn farewell(link: Link) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Link { mut stream, cut } = link;
    let wait = async {
        stream.shutdown().await?;
        while stream.read(&mut [0; 256]).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), wait).await;
    drop::<Cut>(cut);
}

/// Counts what is open per key, up to a limit per key and one in all.
#[derive(Debug)]
struct Counters<K> {
    each: u32,
    all: u32,
    open: Mutex<(HashMap<K, u32>, u32)>,
}

/// One counted thing; gives its place back when dropped.
#[derive(Debug)]
struct Slot<K: Hash + Eq> {
    of: Arc<Counters<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> Counters<K> {
    fn new(each: u32, all: u32) -> Self {
        Self {
            each,
            all,
            open: Mutex::new((HashMap::new(), 0)),
        }
    }

    fn take(self: &Arc<Self>, key: K) -> Option<Slot<K>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (by_key, total) = &mut *open;
        let count = by_key.get(&key).copied().unwrap_or(0);
        if count >= self.each || *total >= self.all {
            return None;
        }
        by_key.insert(key.clone(), count + 1);
        *total += 1;
        Some(Slot {
            of: self.clone(),
            key,
        })
    }
}

impl<K: Hash + Eq> Drop for Slot<K> {
    fn drop(&mut self) {
        let mut open = self.of.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (by_key, total) = &mut *open;
        *total -= 1;
        if let Some(count) = by_key.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_bound_each_and_all_and_forget() {
        let c = Arc::new(Counters::new(2, 3));
        let (a1, a2) = (c.take("a").unwrap(), c.take("a").unwrap());
        assert!(c.take("a").is_none(), "limit of one key");
        let b = c.take("b").unwrap();
        assert!(c.take("c").is_none(), "limit of all");
        drop((a1, a2, b));
        assert!(c.open.lock().unwrap().0.is_empty());
        assert!(c.take("a").is_some());
    }
}
