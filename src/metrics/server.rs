//! HTTP/1.1, as little of it as a scraper needs: `GET /metrics` and `HEAD`, one request per
//! connection.
//!
//! Requests are parsed by `httparse`. A whole HTTP library was not taken, since what it would
//! bring (keep-alive, bodies, upgrades, HTTP/2) is all refused here. Size, time and number of
//! connections are bounded; when there are too many, the oldest, which is a slow one, is cut, so
//! that those who wait hold up nobody.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// Most connections at a time.
const CONNECTIONS: usize = 32;
/// Largest request head, bytes.
const HEAD: usize = 8 * 1024;
/// Most header lines.
const HEADERS: usize = 64;
/// Longest time until the request is there.
const READ: Duration = Duration::from_secs(5);
/// Longest time until the answer is taken.
const WRITE: Duration = Duration::from_secs(10);
/// A page is given again for this long instead of being made anew.
const FRESH: Duration = Duration::from_millis(500);

const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

struct Pages<F> {
    make: F,
    last: Mutex<Option<(Instant, Arc<str>)>>,
}

impl<F, Fut> Pages<F>
where
    F: Fn() -> Fut,
    Fut: Future<Output = String>,
{
    /// The page; those who ask at the same time share one.
    async fn get(&self) -> Arc<str> {
        let mut last = self.last.lock().await;
        if let Some((made, page)) = last.as_ref()
            && made.elapsed() < FRESH
        {
            return page.clone();
        }
        let page: Arc<str> = (self.make)().await.into();
        *last = Some((Instant::now(), page.clone()));
        page
    }
}

/// Serves until dropped; `make` makes the page.
pub async fn serve<F, Fut>(listener: TcpListener, make: F)
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = String> + Send + 'static,
{
    serve_within(READ, listener, make).await;
}

/// Like [`serve`], with another longest time until the request is there.
async fn serve_within<F, Fut>(limit: Duration, listener: TcpListener, make: F)
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = String> + Send + 'static,
{
    let pages = Arc::new(Pages {
        make,
        last: Mutex::new(None),
    });
    let mut tasks = JoinSet::new();
    let mut order: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) => {
                    order.retain(|h| !h.is_finished());
                    if order.len() >= CONNECTIONS && let Some(oldest) = order.pop_front() {
                        tracing::debug!("too many connections for metrics: the oldest is cut");
                        oldest.abort();
                    }
                    let pages = pages.clone();
                    order.push_back(tasks.spawn(async move {
                        if let Err(e) = answer(tcp, limit, &pages).await {
                            tracing::debug!(%from, error = %e, "metrics not given");
                        }
                    }));
                }
                Err(e) => {
                    // Out of file descriptors, mostly: give those that are open time to end.
                    tracing::warn!(error = %e, "cannot accept a connection for metrics");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Metrics { head_only: bool },
    Refused(&'static str),
}

/// `None` while the head is not complete.
pub(super) fn parse(bytes: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < HEAD => None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            Some(Asked::Refused("431 Request Header Fields Too Large"))
        }
        Err(_) => Some(Asked::Refused("400 Bad Request")),
        Ok(httparse::Status::Complete(_)) => {
            let path = request.path.unwrap_or_default();
            let path = path.split('?').next().unwrap_or_default();
            Some(match (request.method.unwrap_or_default(), path) {
                (method @ ("GET" | "HEAD"), "/metrics") => Asked::Metrics {
                    head_only: method == "HEAD",
                },
                ("GET" | "HEAD", _) => Asked::Refused("404 Not Found"),
                _ => Asked::Refused("405 Method Not Allowed"),
            })
        }
    }
}

async fn read(tcp: &mut TcpStream) -> std::io::Result<Option<Asked>> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let room = (HEAD - bytes.len()) as u64;
        if (&mut *tcp).take(room).read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
        if let Some(asked) = parse(&bytes) {
            return Ok(Some(asked));
        }
    }
}

async fn answer<F, Fut>(
    mut tcp: TcpStream,
    limit: Duration,
    pages: &Pages<F>,
) -> std::io::Result<()>
where
    F: Fn() -> Fut,
    Fut: Future<Output = String>,
{
    let (status, kind, body, head_only) = match timeout(limit, read(&mut tcp)).await {
        Err(_) => ("408 Request Timeout", PLAIN, Arc::from(""), false),
        Ok(Ok(None)) => return Ok(()),
        Ok(Ok(Some(Asked::Refused(why)))) => (
            why,
            PLAIN,
            Arc::from(format!("{why}; metrics are at /metrics\n")),
            false,
        ),
        Ok(Ok(Some(Asked::Metrics { head_only }))) => {
            ("200 OK", METRICS, pages.get().await, head_only)
        }
        Ok(Err(e)) => return Err(e),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let write = async {
        tcp.write_all(head.as_bytes()).await?;
        if !head_only {
            tcp.write_all(body.as_bytes()).await?;
        }
        tcp.shutdown().await
    };
    timeout(WRITE, write)
        .await
        .unwrap_or(Err(std::io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    async fn started() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, || async { "# EOF\n".to_owned() }));
        at
    }

    async fn ask(at: SocketAddr, request: &[u8]) -> String {
        let mut tcp = TcpStream::connect(at).await.unwrap();
        tcp.write_all(request).await.unwrap();
        let mut text = String::new();
        // A refusal may cut off the rest of what is sent.
        let _ = tcp.read_to_string(&mut text).await;
        text
    }

    #[tokio::test]
    async fn requests() {
        let at = started().await;
        let good = ask(at, b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(good.starts_with("HTTP/1.1 200 OK\r\n"), "{good}");
        assert!(good.contains("Content-Type: application/openmetrics-text; version=1.0.0"));
        assert!(good.contains("Content-Length: 6\r\n"));
        assert!(good.ends_with("\r\n\r\n# EOF\n"), "{good}");
        let head = ask(at, b"HEAD /metrics HTTP/1.1\r\n\r\n").await;
        assert!(head.contains("Content-Length: 6\r\n") && head.ends_with("\r\n\r\n"));
        for (request, status) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"\x16\x03\x01\x02\x00\x01\x00", "400"),
            (b"GET /metrics HTTP/9.9\r\n\r\n", "400"),
        ] {
            let got = ask(at, request).await;
            assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{got}");
        }
        let mut long = b"GET /metrics HTTP/1.1\r\nX: ".to_vec();
        long.resize(HEAD, b'x');
        assert!(ask(at, &long).await.starts_with("HTTP/1.1 431 "));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS + 1));
        assert!(ask(at, many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    }

    #[tokio::test]
    async fn slow_clients_hold_up_nobody() {
        let at = started().await;
        // More than there may be, none of which says what it wants, or takes what it gets.
        let mut slow = Vec::new();
        for _ in 0..CONNECTIONS * 2 {
            let mut tcp = TcpStream::connect(at).await.unwrap();
            tcp.write_all(b"GET /met").await.unwrap();
            slow.push(tcp);
        }
        let begun = Instant::now();
        for _ in 0..CONNECTIONS {
            let good = ask(at, b"GET /metrics HTTP/1.1\r\n\r\n").await;
            assert!(good.starts_with("HTTP/1.1 200 OK\r\n"), "{good}");
        }
        assert!(begun.elapsed() < READ, "{:?}", begun.elapsed());
        // The first ones were cut to make room.
        let mut byte = [0];
        let end = timeout(READ, slow[0].read(&mut byte)).await.unwrap();
        assert!(!matches!(end, Ok(1..)), "{end:?}");
    }

    #[tokio::test]
    async fn silence_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let limit = Duration::from_millis(50);
        tokio::spawn(serve_within(limit, listener, || async { String::new() }));
        let mut tcp = TcpStream::connect(at).await.unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    }

    #[tokio::test]
    async fn a_page_is_shared_by_those_who_ask_at_once() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        tokio::spawn(serve(listener, move || {
            counter.fetch_add(1, Ordering::Relaxed);
            async { "# EOF\n".to_owned() }
        }));
        let asked = (0..8).map(|_| ask(at, b"GET /metrics HTTP/1.1\r\n\r\n"));
        for text in futures_util::future::join_all(asked).await {
            assert!(text.ends_with("# EOF\n"));
        }
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }
}
