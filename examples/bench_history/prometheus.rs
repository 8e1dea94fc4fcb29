//! A Prometheus of its own, over its own protocols.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use drover::columns::Column;
use serde_json::Value;

use super::series::{Feature, TICKS, end_ms};
use super::{Measured, Question, du};

/// Ticks encoded at once.
const AHEAD: usize = 32;
const SENDERS: usize = 2;

struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Debian's Prometheus.
fn start(dir: &Path) -> Server {
    let script = "vagrant/provision/prometheus.sh";
    let out = Command::new(script)
        .arg("target/prometheus")
        .stderr(Stdio::null())
        .output()
        .unwrap();
    assert!(out.status.success(), "{script} failed");
    let programs = String::from_utf8(out.stdout).unwrap();
    fs::create_dir_all(dir).unwrap();
    let config = dir.join("prometheus.yml");
    fs::write(&config, "global: {}\n").unwrap();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let child = Command::new(Path::new(programs.trim()).join("prometheus"))
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            dir.join("data").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .args([
            "--web.enable-remote-write-receiver",
            "--web.enable-admin-api",
        ])
        .args(["--storage.tsdb.retention.time=100y", "--log.level=error"])
        // One block of all, which is the least index.
        .args([
            "--storage.tsdb.min-block-duration=24h",
            "--storage.tsdb.max-block-duration=24h",
        ])
        .args(["--query.max-samples=100000000"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server { child, port };
    for _ in 0..300 {
        if let Ok(mut http) = Http::connect(port)
            && http.get("/-/ready").0 == 200
        {
            return server;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("Prometheus does not become ready");
}

struct Http(BufReader<TcpStream>);

impl Http {
    fn connect(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    fn send(&mut self, head: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let stream = self.0.get_mut();
        let mut request = head.as_bytes().to_vec();
        request.extend_from_slice(body);
        stream.write_all(&request).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let status: u16 = line.split(' ').nth(1).unwrap().parse().unwrap();
        let (mut length, mut chunked) = (0, false);
        loop {
            line.clear();
            self.0.read_line(&mut line).unwrap();
            let header = line.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(n) = header.strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
            chunked |= header == "transfer-encoding: chunked";
        }
        let mut answer = Vec::new();
        if !chunked {
            answer.resize(length, 0);
            self.0.read_exact(&mut answer).unwrap();
            return (status, answer);
        }
        loop {
            line.clear();
            self.0.read_line(&mut line).unwrap();
            let n = usize::from_str_radix(line.trim(), 16).unwrap();
            let at = answer.len();
            answer.resize(at + n + 2, 0);
            self.0.read_exact(&mut answer[at..]).unwrap();
            answer.truncate(at + n);
            if n == 0 {
                return (status, answer);
            }
        }
    }

    fn get(&mut self, path: &str) -> (u16, Vec<u8>) {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"), b"")
    }

    fn query(&mut self, expr: &str, at_ms: i64) -> Vec<u8> {
        let escaped: String = expr
            .bytes()
            .map(|b| match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(b).to_string(),
                b => format!("%{b:02X}"),
            })
            .collect();
        let time = at_ms as f64 / 1000.0;
        let (status, body) = self.get(&format!("/api/v1/query?time={time}&query={escaped}"));
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        body
    }
}

fn varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn metric(c: &Column) -> String {
    format!("drover_feature_{}", c.name)
}

fn labels(f: &Feature, c: &Column) -> Vec<u8> {
    let mut out = Vec::new();
    let all = [
        ("__name__", metric(c)),
        ("domain", "g1".into()),
        ("feature", f.name.to_string()),
    ];
    for (name, value) in all {
        let mut label = Vec::new();
        field(&mut label, 1, name.as_bytes());
        field(&mut label, 2, value.as_bytes());
        field(&mut out, 1, &label);
    }
    out
}

/// A remote-write request, in snappy's form of bytes that are not compressed.
fn request(series: &[(&Feature, &Column, Vec<u8>)], tick: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for (f, c, labels) in series {
        let u = f.point(tick);
        let Some(v) = (c.get)(&u) else { continue };
        let mut sample = vec![1 << 3 | 1];
        sample.extend_from_slice(&v.to_le_bytes());
        sample.push(2 << 3);
        varint(&mut sample, u.at_ms.cast_unsigned());
        let mut one = labels.clone();
        field(&mut one, 2, &sample);
        field(&mut body, 1, &one);
    }
    let mut out = Vec::with_capacity(body.len() + body.len() / 1000 + 16);
    varint(&mut out, body.len() as u64);
    for part in body.chunks(65_536) {
        let n = (part.len() - 1) as u16;
        out.push(61 << 2);
        out.extend_from_slice(&n.to_le_bytes());
        out.extend_from_slice(part);
    }
    let head = format!(
        "POST /api/v1/write HTTP/1.1\r\nHost: x\r\nContent-Encoding: snappy\r\n\
         Content-Type: application/x-protobuf\r\n\
         X-Prometheus-Remote-Write-Version: 0.1.0\r\nContent-Length: {}\r\n\r\n",
        out.len()
    );
    let mut whole = head.into_bytes();
    whole.extend_from_slice(&out);
    whole
}

fn ingest(port: u16, features: &[Feature]) -> f64 {
    let halves: Vec<Vec<(&Feature, &Column, Vec<u8>)>> = features
        .chunks(features.len().div_ceil(SENDERS))
        .map(|part| {
            part.iter()
                .flat_map(|f| f.columns().into_iter().map(move |c| (f, c, labels(f, c))))
                .collect()
        })
        .collect();
    let mut links: Vec<Http> = halves
        .iter()
        .map(|_| Http::connect(port).unwrap())
        .collect();
    let mut spent = 0.0;
    for part in (0..TICKS).collect::<Vec<_>>().chunks(AHEAD) {
        let encoded: Vec<Vec<Vec<u8>>> = halves
            .iter()
            .map(|series| part.iter().map(|t| request(series, *t)).collect())
            .collect();
        let at = Instant::now();
        std::thread::scope(|scope| {
            for (link, requests) in links.iter_mut().zip(&encoded) {
                scope.spawn(move || {
                    for r in requests {
                        let (status, body) = link.send("", r);
                        assert_eq!(status, 204, "{}", String::from_utf8_lossy(&body));
                    }
                });
            }
        });
        spent += at.elapsed().as_secs_f64();
    }
    spent
}

pub fn measure(features: &[Feature], questions: &[Question], dir: &Path) -> Measured {
    let server = start(dir);
    let mut m = Measured {
        ingest_s: ingest(server.port, features),
        ..Measured::default()
    };
    let mut http = Http::connect(server.port).unwrap();
    for q in questions {
        let at = Instant::now();
        let name = &features[q.feature].name;
        let expr = format!("{}{{feature=\"{name}\"}}[2h]", metric(q.column));
        let body = http.query(&expr, q.until_ms);
        m.range_ms.push(at.elapsed().as_secs_f64() * 1e3);
        assert!(body.len() > 1000, "{}", String::from_utf8_lossy(&body));
    }
    let mut counted = 0;
    for f in features {
        let at = Instant::now();
        let body = http.query(&format!("{{feature=\"{}\"}}[6h]", f.name), end_ms() - 1);
        m.scan_s += at.elapsed().as_secs_f64();
        let v: Value = serde_json::from_slice(&body).unwrap();
        let series = v["data"]["result"].as_array().unwrap();
        let of = |s: &Value| s["values"].as_array().map_or(0, Vec::len) as u64;
        counted += series.iter().map(of).sum::<u64>();
    }
    m.scanned = counted;
    let at = Instant::now();
    let (status, body) = http.send(
        "POST /api/v1/admin/tsdb/snapshot HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"",
    );
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    m.settle_s = at.elapsed().as_secs_f64();
    m.bytes = du(&dir.join("data/snapshots"));
    m.more = serde_json::json!({ "version": "Debian's, see vagrant/provision/prometheus.sh" });
    m
}
