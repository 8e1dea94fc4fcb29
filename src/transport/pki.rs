//! Certificates in libvirt's layout: reading them, checking them before they are used, and
//! telling which configured peer a certificate belongs to.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::{Protocol, TransportError};
use crate::config::PeerSection;

/// Checked certificates, ready for connections in both directions.
#[derive(Debug, Clone)]
pub struct Pki {
    pub(super) server: Arc<ServerConfig>,
    control: Arc<ClientConfig>,
    bulk: Arc<ClientConfig>,
}

const CA: (&str, &str) = ("CA certificate", "peer.ca");
const SERVER_CERT: (&str, &str) = ("server certificate", "peer.server_cert");
const SERVER_KEY: (&str, &str) = ("server key", "peer.server_key");
const CLIENT_CERT: (&str, &str) = ("client certificate", "peer.client_cert");
const CLIENT_KEY: (&str, &str) = ("client key", "peer.client_key");

impl Pki {
    /// Reads the files that `section` names and checks that they belong together: both
    /// certificates are issued by the CA, valid now, meant for their use and name the host `me`.
    ///
    /// Errors name the file and the way out.
    pub fn load(section: &PeerSection, me: &str) -> Result<Self, TransportError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for der in certificates(&section.ca, CA)? {
            roots
                .add(der)
                .map_err(|e| file(&section.ca, CA, e.to_string()))?;
        }
        let roots = Arc::new(roots);
        let server_chain = certificates(&section.server_cert, SERVER_CERT)?;
        let server_key = key(&section.server_key, SERVER_KEY)?;
        let client_chain = certificates(&section.client_cert, CLIENT_CERT)?;
        let client_key = key(&section.client_key, CLIENT_KEY)?;
        let check = |path: &Path, what: (&'static str, &str), chain: &[_], usage| {
            check_own(&provider, &roots, chain, usage, me)
                .map_err(|problem| file(path, what, problem))
        };
        check(
            &section.server_cert,
            SERVER_CERT,
            &server_chain,
            KeyUsage::server_auth(),
        )?;
        check(
            &section.client_cert,
            CLIENT_CERT,
            &client_chain,
            KeyUsage::client_auth(),
        )?;

        let tls = |e: rustls::Error| TransportError::Tls(e.to_string());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| TransportError::Tls(e.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(server_chain, server_key)
            .map_err(|e| pair(&section.server_key, SERVER_KEY, &section.server_cert, &e))?;
        server.alpn_protocols = vec![
            Protocol::Control.alpn().to_vec(),
            Protocol::Bulk.alpn().to_vec(),
        ];
        // Every connection shows its certificate anew: a resumed session would outlive it.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let mut control = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_root_certificates(roots)
            .with_client_auth_cert(client_chain, client_key)
            .map_err(|e| pair(&section.client_key, CLIENT_KEY, &section.client_cert, &e))?;
        control.resumption = Resumption::disabled();
        let mut bulk = control.clone();
        control.alpn_protocols = vec![Protocol::Control.alpn().to_vec()];
        bulk.alpn_protocols = vec![Protocol::Bulk.alpn().to_vec()];
        Ok(Self {
            server: Arc::new(server),
            control: Arc::new(control),
            bulk: Arc::new(bulk),
        })
    }

    pub(super) fn client(&self, protocol: Protocol) -> Arc<ClientConfig> {
        match protocol {
            Protocol::Control => self.control.clone(),
            Protocol::Bulk => self.bulk.clone(),
        }
    }
}

/// A host's name as certificates hold it.
pub fn server_name(name: &str) -> Result<ServerName<'static>, TransportError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TransportError::Name(name.to_owned()))
}

/// Which of the `peers` (with their names as certificates hold them) `certificate` names. Only
/// subjectAltName counts; the common name is ignored, as in every current TLS library.
///
/// The error says in words what is wrong. A certificate that is valid for two peers (a wildcard)
/// is refused: it would let one peer pass for another.
pub fn identify<'a>(
    certificate: &CertificateDer<'_>,
    peers: &'a [(String, ServerName<'static>)],
) -> Result<&'a str, String> {
    let cert = EndEntityCert::try_from(certificate).map_err(|e| explain(&e))?;
    let mut found: Option<&str> = None;
    for (name, server_name) in peers {
        if cert.verify_is_valid_for_subject_name(server_name).is_ok() {
            if let Some(other) = found {
                return Err(format!(
                    "its certificate is valid for both '{other}' and '{name}', so it proves neither; issue one certificate per host"
                ));
            }
            found = Some(name);
        }
    }
    found.ok_or_else(|| {
        format!(
            "its certificate names none of the hosts in [[peer.hosts]] ({}); add the host there, or issue the certificate with the host's name as subjectAltName DNS entry",
            names(&cert)
        )
    })
}

/// The DNS names in a certificate, in words.
fn names(cert: &EndEntityCert<'_>) -> String {
    let list: Vec<&str> = cert.valid_dns_names().take(8).collect();
    if list.is_empty() {
        "it has no subjectAltName DNS entry".to_owned()
    } else {
        format!("it is for {}", list.join(", "))
    }
}

fn check_own(
    provider: &CryptoProvider,
    roots: &RootCertStore,
    chain: &[CertificateDer<'_>],
    usage: KeyUsage,
    me: &str,
) -> Result<(), String> {
    let (first, rest) = chain
        .split_first()
        .ok_or_else(|| "it holds no certificate".to_owned())?;
    let cert = EndEntityCert::try_from(first).map_err(|e| explain(&e))?;
    cert.verify_for_usage(
        provider.signature_verification_algorithms.all,
        &roots.roots,
        rest,
        UnixTime::now(),
        usage,
        None,
        None,
    )
    .map_err(|e| explain(&e))?;
    let name = server_name(me).map_err(|e| e.to_string())?;
    cert.verify_is_valid_for_subject_name(&name).map_err(|_| {
        format!(
            "it does not name this host '{me}' ({}); issue it with subjectAltName=DNS:{me} (a common name does not count), or correct host.name",
            names(&cert)
        )
    })
}

/// When the first of the certificates in a file expires, seconds since the epoch; `None` when
/// that cannot be told.
pub fn expires(path: &Path) -> Option<u64> {
    let text = std::fs::read(path).ok()?;
    let provider = rustls::crypto::ring::default_provider();
    // webpki tells the end of a certificate only when refusing it, and looks at that first: so
    // it is asked about the end of time, for nobody's trust.
    let end = |der: CertificateDer<'_>| {
        let cert = EndEntityCert::try_from(&der).ok()?;
        let refused = cert.verify_for_usage(
            provider.signature_verification_algorithms.all,
            &[],
            &[],
            UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX)),
            KeyUsage::server_auth(),
            None,
            None,
        );
        match refused.err() {
            Some(webpki::Error::CertExpired { not_after, .. }) => Some(not_after.as_secs()),
            _ => None,
        }
    };
    let all = CertificateDer::pem_slice_iter(&text);
    all.filter_map(|der| end(der.ok()?)).min()
}

/// What is wrong with a certificate, and the way out.
fn explain(e: &webpki::Error) -> String {
    match e {
        webpki::Error::CertExpired { .. } => "it has expired; issue a new one".into(),
        webpki::Error::CertNotValidYet { .. } => {
            "it is not valid yet; check this host's clock".into()
        }
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            "it was not issued by the configured CA; issue it with that CA, or correct peer.ca"
                .into()
        }
        webpki::Error::UnsupportedCertVersion => {
            "it is not an X.509 version 3 certificate; issue it with extensions".into()
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => {
            "its extended key usage does not allow this; issue the server's with serverAuth and the client's with clientAuth"
                .into()
        }
        webpki::Error::CaUsedAsEndEntity => {
            "it is a CA's certificate; issue one for the host with it".into()
        }
        other => format!("{other}"),
    }
}

fn file(path: &Path, (what, _): (&'static str, &str), problem: String) -> TransportError {
    TransportError::File {
        what,
        path: path.into(),
        problem,
    }
}

fn pair(
    key_path: &Path,
    what: (&'static str, &str),
    cert_path: &Path,
    e: &rustls::Error,
) -> TransportError {
    file(
        key_path,
        what,
        format!("{e}; it must be the key of {}", cert_path.display()),
    )
}

fn read(path: &Path, (what, key): (&'static str, &'static str)) -> Result<Vec<u8>, TransportError> {
    std::fs::read(path).map_err(|source| TransportError::Read {
        what,
        path: path.into(),
        key,
        source,
    })
}

fn certificates(
    path: &Path,
    what: (&'static str, &'static str),
) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let text = read(path, what)?;
    let list = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| file(path, what, format!("it is not valid PEM: {e}")))?;
    if list.is_empty() {
        return Err(file(
            path,
            what,
            "it holds no certificate in PEM form".into(),
        ));
    }
    Ok(list)
}

fn key(
    path: &Path,
    what: (&'static str, &'static str),
) -> Result<PrivateKeyDer<'static>, TransportError> {
    let text = read(path, what)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        file(
            path,
            what,
            "it holds no unencrypted private key in PEM form".into(),
        )
    })
}
