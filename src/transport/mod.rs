//! Authenticated byte streams between daemons: mutual TLS 1.3 with libvirt's certificates.
//!
//! [`pki`] reads and checks the certificate files and tells which configured peer a certificate
//! names; [`stream`] makes one connection; [`listen`] accepts many, so that a slow or hostile
//! client holds nobody up. What travels inside is `crate::peer`'s concern: the protocol that was
//! negotiated by ALPN ([`Protocol`]) is all that this module knows of it.

pub mod listen;
pub mod pki;
pub mod stream;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use listen::{Incoming, Listener};
pub use pki::Pki;
pub use stream::{Cut, Link};

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
        match self {
            Self::Control => b"drover-control/1",
            Self::Bulk => b"drover-bulk/1",
        }
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
    /// TLS cannot be set up, for a reason that is none of the above.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// No connection to a peer.
    #[error("{0}")]
    Connect(String),
}
