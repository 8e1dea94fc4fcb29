//! One connection: TCP options, TLS, and the greeting that ends the set-up.
//!
//! In TLS 1.3 a client learns only with the first byte from the server whether its certificate
//! was accepted. So the server's first line is a greeting, `ok` or `refused REASON`: the dialling
//! side gets the reason in words instead of a connection that breaks later.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Pki, Protocol, TransportError};

/// Longest answer line, bytes.
const MAX_ANSWER: usize = 512;

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin + std::fmt::Debug {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + std::fmt::Debug> Duplex for T {}

/// A stream whose other side has proved who it is, whatever carries it.
pub type Stream = Box<dyn Duplex>;

/// An authenticated stream.
#[derive(Debug)]
pub struct Link {
    /// The stream; write, then flush.
    pub stream: Stream,
    /// Ends the connection from outside.
    pub cut: Cut,
}

/// Ends a connection from outside, whoever holds its stream: reads end, writes fail.
#[derive(Debug)]
pub enum Cut {
    /// A connection over the network.
    Tcp(std::net::TcpStream),
    /// A socket of this host: to ssh, or to what sshd started.
    Unix(std::os::unix::net::UnixStream),
}

impl Cut {
    /// Ends the connection now. Harmless when it has ended already.
    pub fn cut(&self) {
        let _ = match self {
            Self::Tcp(s) => s.shutdown(std::net::Shutdown::Both),
            Self::Unix(s) => s.shutdown(std::net::Shutdown::Both),
        };
    }

    /// How long the other side may leave sent data unacknowledged, or its receive window shut,
    /// before the kernel ends the connection; `None` sets no limit but keepalive's.
    /// ssh has limits of its own.
    pub fn set_patience(&self, patience: Option<Duration>) -> std::io::Result<()> {
        let Self::Tcp(tcp) = self else {
            return Ok(());
        };
        let millis = patience.map_or(0, |p| p.as_millis().clamp(500, 3_600_000) as u32);
        Ok(setsockopt(tcp, sockopt::TcpUserTimeout, &millis)?)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Sets what a control or bulk connection needs on `tcp`: no delay of small messages, and an end
/// of the connection within about `dead_after` once the other side no longer acknowledges.
/// Returns the handle that ends it from outside.
pub(super) fn prepare(tcp: TcpStream, dead_after: Duration) -> std::io::Result<(TcpStream, Cut)> {
    tcp.set_nodelay(true)?;
    let seconds = (dead_after.as_secs_f64() / 3.0).ceil().clamp(1.0, 3600.0) as u32;
    setsockopt(&tcp, sockopt::KeepAlive, &true)?;
    setsockopt(&tcp, sockopt::TcpKeepIdle, &seconds)?;
    setsockopt(&tcp, sockopt::TcpKeepInterval, &seconds)?;
    setsockopt(&tcp, sockopt::TcpKeepCount, &2)?;
    let std = tcp.into_std()?;
    let cut = Cut::Tcp(std.try_clone()?);
    cut.set_patience(Some(dead_after))?;
    Ok((TcpStream::from_std(std)?, cut))
}

/// Connects to the host `name` at `address`, checks that its certificate is valid for `name`,
/// and waits for its greeting. Fails after `timeout` at the latest.
pub async fn connect(
    pki: &Pki,
    address: SocketAddr,
    name: &ServerName<'static>,
    protocol: Protocol,
    dead_after: Duration,
    timeout: Duration,
) -> Result<Link, TransportError> {
    let set_up = async {
        let tcp = TcpStream::connect(address)
            .await
            .map_err(|e| format!("cannot connect to {address}: {e}"))?;
        let (tcp, cut) =
            prepare(tcp, dead_after).map_err(|e| format!("cannot set socket options: {e}"))?;
        let tls = TlsConnector::from(pki.client(protocol))
            .connect(name.clone(), tcp)
            .await
            .map_err(|e| format!("no TLS with {address}: {}", explain(&e)))?;
        if tls.get_ref().1.alpn_protocol() != Some(protocol.alpn()) {
            return Err(format!(
                "{address} does not speak {}",
                String::from_utf8_lossy(protocol.alpn())
            ));
        }
        let mut stream: Stream = Box::new(tls);
        read_answer(&mut stream)
            .await
            .map_err(|e| format!("{address} refused this host: {e}"))?;
        Ok(Link { stream, cut })
    };
    match tokio::time::timeout(timeout, set_up).await {
        Ok(done) => done.map_err(TransportError::Connect),
        Err(_) => Err(TransportError::Connect(format!(
            "{address} did not answer within {:.1} s",
            timeout.as_secs_f64()
        ))),
    }
}

/// A failure of a stream in words, with the way out where there is one.
pub fn explain(e: &std::io::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};
    match e.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => {
            "its certificate has expired; issue a new one".into()
        }
        Some(Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) => {
            "its certificate was not issued by the configured CA (peer.ca)".into()
        }
        Some(Error::InvalidCertificate(
            Bad::NotValidForName | Bad::NotValidForNameContext { .. },
        )) => "its certificate is not for the configured host name; it needs that name as subjectAltName DNS entry".into(),
        Some(Error::InvalidCertificate(other)) => format!("its certificate is invalid: {other}"),
        Some(Error::NoCertificatesPresented) => "it showed no certificate".into(),
        Some(Error::AlertReceived(Alert::NoApplicationProtocol) | Error::NoApplicationProtocol) => {
            "the two sides speak different versions of the peer protocol, or it is not droverd".into()
        }
        Some(Error::AlertReceived(Alert::CertificateExpired)) => {
            "it says that this host's certificate has expired".into()
        }
        // A CA of the same name with another key shows as a signature that does not fit.
        Some(Error::AlertReceived(Alert::UnknownCA | Alert::DecryptError)) => {
            "it says that this host's certificate is of another CA".into()
        }
        Some(Error::InvalidMessage(_)) => "what it sent is not TLS".into(),
        _ if e.kind() == std::io::ErrorKind::UnexpectedEof => "the connection was cut".into(),
        _ => e.to_string(),
    }
}

/// Writes `ok`, or `refused` with the reason, as one line.
pub async fn write_answer<W: AsyncWrite + Unpin + ?Sized>(
    to: &mut W,
    answer: Result<(), &str>,
) -> std::io::Result<()> {
    let mut line = match answer {
        Ok(()) => "ok".to_owned(),
        Err(reason) => format!("refused {}", reason.replace(['\n', '\r'], " ")),
    };
    let mut end = line.len().min(MAX_ANSWER - 1);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line.push('\n');
    to.write_all(line.as_bytes()).await?;
    to.flush().await
}

/// Writes `ok` with a word on which both sides agree, as one line.
pub async fn write_agreed<W: AsyncWrite + Unpin + ?Sized>(
    to: &mut W,
    word: &str,
) -> std::io::Result<()> {
    to.write_all(format!("ok {word}\n").as_bytes()).await?;
    to.flush().await
}

/// Reads what [`write_answer`] wrote. The error is the other side's reason, or why none came.
pub async fn read_answer<R: AsyncRead + Unpin>(from: &mut R) -> Result<(), String> {
    match read_agreed(from).await?.as_str() {
        "" => Ok(()),
        _ => Err("its answer is not droverd's".into()),
    }
}

/// Reads what [`write_answer`] or [`write_agreed`] wrote: the word, empty when there is none.
pub async fn read_agreed<R: AsyncRead + Unpin>(from: &mut R) -> Result<String, String> {
    let line = read_line(from, MAX_ANSWER).await.map_err(|e| explain(&e))?;
    if let Some(reason) = line.strip_prefix("refused ") {
        return Err(reason.chars().filter(|c| !c.is_control()).collect());
    }
    match line.split_once(' ') {
        None if line == "ok" => Ok(String::new()),
        Some(("ok", word)) => Ok(word.to_owned()),
        _ => Err("its answer is not droverd's".into()),
    }
}

/// Reads one line of at most `max` bytes, its end included, and nothing behind it.
pub async fn read_line<R: AsyncRead + Unpin>(from: &mut R, max: usize) -> std::io::Result<String> {
    use std::io::{Error, ErrorKind};
    let mut line = Vec::new();
    loop {
        // Byte by byte out of the TLS layer's buffer: lines come once per connection.
        match from.read_u8().await? {
            b'\n' => break,
            _ if line.len() + 1 >= max => {
                return Err(Error::new(ErrorKind::InvalidData, "line too long"));
            }
            byte => line.push(byte),
        }
    }
    String::from_utf8(line).map_err(|_| Error::new(ErrorKind::InvalidData, "line is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_leave_the_rest() {
        let mut from: &[u8] = b"one\ntwo";
        assert_eq!(read_line(&mut from, 10).await.unwrap(), "one");
        assert_eq!(from, b"two");
        assert!(read_line(&mut from, 10).await.is_err(), "no end");
        let mut long: &[u8] = b"0123456789\n";
        assert!(read_line(&mut long, 10).await.is_err());
    }

    #[tokio::test]
    async fn cut_ends_both_directions() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut here, _) = listener.accept().await.unwrap();
        let (mut there, cut) = prepare(there, Duration::from_secs(2)).unwrap();
        let waits = tokio::spawn(async move { there.read(&mut [0; 8]).await });
        cut.cut();
        assert_eq!(waits.await.unwrap().unwrap(), 0);
        assert_eq!(here.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
