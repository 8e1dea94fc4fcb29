//! Authenticated byte streams between daemons: mutual TLS 1.3 with libvirt's certificates, or
//! ssh ([`ssh`]).
//!
//! [`pki`] reads and checks the certificate files and tells which configured peer a certificate
//! names; [`stream`] makes one connection; [`listen`] accepts many, so that a slow or hostile
//! client holds nobody up. What travels inside is `crate::peer`'s concern: the protocol that was
//! negotiated by ALPN ([`Protocol`]) is all that this module knows of it.

pub mod listen;
pub mod pki;
pub mod ssh;
pub mod stream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustls_pki_types::ServerName;

pub use listen::{Incoming, Listener, SshListener};
pub use pki::Pki;
pub use ssh::Ssh;
pub use stream::{Cut, Link, Stream};

/// What a connection is for, told by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// D-Bus, peer to peer.
    Control,
    /// Checkpoint images of one move.
    Bulk,
}

impl Protocol {
    /// The ALPN identifier; the number is the protocol's major version.
    pub fn alpn(self) -> &'static [u8] {
        self.word().as_bytes()
    }

    /// The same as a word, for ssh.
    pub fn word(self) -> &'static str {
        match self {
            Self::Control => "drover-control/1",
            Self::Bulk => "drover-bulk/1",
        }
    }

    /// The protocol of a [`Protocol::word`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::from_alpn(Some(word.as_bytes()))
    }

    fn from_alpn(alpn: Option<&[u8]>) -> Option<Self> {
        [Self::Control, Self::Bulk]
            .into_iter()
            .find(|p| Some(p.alpn()) == alpn)
    }
}

/// Why there is no authenticated stream.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A certificate or key file cannot be read.
    #[error(
        "cannot read the {what} {path}: {source}; put the file there, readable for droverd, or set {key} in drover.toml"
    )]
    Read {
        /// What the file is.
        what: &'static str,
        /// File.
        path: PathBuf,
        /// Configuration key that names it.
        key: &'static str,
        /// Cause.
        source: std::io::Error,
    },
    /// A file does not hold what it should, or a certificate cannot serve.
    #[error("the {what} {path} cannot be used: {problem}")]
    File {
        /// What the file is.
        what: &'static str,
        /// File.
        path: PathBuf,
        /// What is wrong with it, and the way out.
        problem: String,
    },
    /// A host's name cannot be in a certificate.
    #[error(
        "'{0}' cannot be a host's name: it must be a DNS name or an IP address, as in the host's certificate"
    )]
    Name(String),
    /// The listening socket cannot be made.
    #[error("cannot listen on {address}: {source}; check peer.listen in drover.toml")]
    Listen {
        /// Address.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// The socket for peers by ssh cannot be made.
    #[error("cannot listen on {path}: {source}; check peer.ssh_socket in drover.toml")]
    Socket {
        /// Socket.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// TLS cannot be set up, for a reason that is none of the above.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// No connection to a peer.
    #[error("{0}")]
    Connect(String),
}

/// How a peer is reached.
#[derive(Debug, Clone)]
pub enum Route {
    /// By TLS, at an address; the name must be in its certificate.
    Tls(SocketAddr, ServerName<'static>),
    /// By ssh.
    Ssh(Ssh),
}

/// Connects to a peer and waits for its greeting, `timeout` at the longest; afterwards the
/// connection ends once the peer was silent for about that time. `pki` is for TLS.
pub async fn dial(
    pki: Option<&Pki>,
    route: &Route,
    protocol: Protocol,
    timeout: Duration,
) -> Result<Link, TransportError> {
    match (route, pki) {
        (Route::Tls(address, name), Some(pki)) => {
            stream::connect(pki, *address, name, protocol, timeout, timeout).await
        }
        (Route::Tls(..), None) => Err(TransportError::Connect(
            "this host has no certificates loaded".into(),
        )),
        (Route::Ssh(ssh), _) => {
            // ssh's own handshake takes longer than one of TLS.
            let limit = timeout.max(Duration::from_secs(10));
            match tokio::time::timeout(limit, ssh.connect(protocol, timeout)).await {
                Ok(done) => {
                    done.map_err(|e| TransportError::Connect(format!("{}: {e}", ssh.destination)))
                }
                Err(_) => Err(TransportError::Connect(format!(
                    "{} did not answer within {:.1} s",
                    ssh.destination,
                    limit.as_secs_f64()
                ))),
            }
        }
    }
}
