//! A client outside the guests, for the demo and the cluster tests.
//!
//! `count ADDR --out FILE`: one TCP connection to a redis, incrementing a counter and checking
//! every reply against the expected number. Until SIGTERM or SIGINT; then it writes a JSON
//! report: `replies`, `errors`, `first_error`, `reconnects`, `skipped` (numbers missing or
//! repeated), `gap_ms_worst` (longest silence between two replies) and when it was.
//!
//! `load ADDR --connections N`: keeps N connections busy with pipelined increments until it is
//! told to stop; reports the same sums.
//!
//! `fill ADDR --keys N --bytes B`: writes N values of B bytes.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: i32) {
    STOP.store(true, Ordering::Relaxed);
}

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Longest silence that is not an error.
const PATIENCE: Duration = Duration::from_secs(60);

struct Redis {
    stream: TcpStream,
    replies: BufReader<TcpStream>,
}

impl Redis {
    fn connect(addr: &str) -> Fallible<Self> {
        let to = addr.parse()?;
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let replies = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, replies })
    }

    fn send(&mut self, command: &[&[u8]], times: usize) -> Fallible<()> {
        let mut one = format!("*{}\r\n", command.len()).into_bytes();
        for part in command {
            one.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            one.extend_from_slice(part);
            one.extend_from_slice(b"\r\n");
        }
        self.stream.write_all(&one.repeat(times))?;
        Ok(())
    }

    /// An integer, or a simple or bulk string as text.
    fn reply(&mut self) -> Fallible<String> {
        let mut line = String::new();
        if self.replies.read_line(&mut line)? == 0 {
            return Err("the server closed the connection".into());
        }
        let line = line.trim_end();
        match line.as_bytes().first() {
            Some(b':' | b'+') => Ok(line[1..].to_owned()),
            Some(b'$') => {
                let mut body = String::new();
                self.replies.read_line(&mut body)?;
                Ok(body.trim_end().to_owned())
            }
            _ => Err(format!("the server answered '{line}'").into()),
        }
    }
}

#[derive(Default)]
struct Report {
    replies: u64,
    errors: u64,
    reconnects: u64,
    skipped: u64,
    first_error: Option<String>,
    gap_ms_worst: f64,
    gap_at_ms: u128,
    last: Option<Instant>,
}

impl Report {
    fn replied(&mut self, n: u64) {
        let now = Instant::now();
        if let Some(last) = self.last {
            let gap = now.duration_since(last).as_secs_f64() * 1000.0;
            if gap > self.gap_ms_worst {
                self.gap_ms_worst = gap;
                self.gap_at_ms = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |d| d.as_millis());
            }
        }
        self.last = Some(now);
        self.replies += n;
    }

    fn failed(&mut self, e: &str) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| e.to_owned());
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "replies": self.replies,
            "errors": self.errors,
            "reconnects": self.reconnects,
            "skipped": self.skipped,
            "first_error": self.first_error,
            "gap_ms_worst": self.gap_ms_worst,
            "gap_at_ms": self.gap_at_ms as u64,
        })
    }
}

fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

fn count(addr: &str, key: &str) -> Report {
    let mut report = Report::default();
    let mut expected: Option<i64> = None;
    'connection: while !stopped() {
        let mut redis = match Redis::connect(addr) {
            Ok(r) => r,
            Err(e) => {
                report.failed(&format!("connecting: {e}"));
                std::thread::sleep(Duration::from_millis(200));
                continue;
            }
        };
        while !stopped() {
            let answer = redis
                .send(&[b"INCR", key.as_bytes()], 1)
                .and_then(|()| redis.reply())
                .and_then(|r| r.parse::<i64>().map_err(Into::into));
            match answer {
                Ok(n) => {
                    if expected.is_some_and(|e| e != n) {
                        report.skipped += 1;
                    }
                    expected = Some(n + 1);
                    report.replied(1);
                }
                Err(_) if stopped() => break 'connection,
                Err(e) => {
                    report.failed(&e.to_string());
                    report.reconnects += 1;
                    continue 'connection;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    report
}

fn load(addr: &str, key: &str) -> Report {
    /// Commands in flight per connection.
    const PIPELINE: usize = 32;
    let mut report = Report::default();
    let run = |report: &mut Report| -> Fallible<()> {
        let mut redis = Redis::connect(addr)?;
        let mut expected: Option<i64> = None;
        while !stopped() {
            redis.send(&[b"INCR", key.as_bytes()], PIPELINE)?;
            for _ in 0..PIPELINE {
                let n: i64 = redis.reply()?.parse()?;
                if expected.is_some_and(|e| e != n) {
                    report.skipped += 1;
                }
                expected = Some(n + 1);
            }
            report.replied(PIPELINE as u64);
        }
        Ok(())
    };
    if let Err(e) = run(&mut report)
        && !stopped()
    {
        report.failed(&e.to_string());
    }
    report
}

fn fill(addr: &str, keys: usize, bytes: usize) -> Fallible<Report> {
    let mut report = Report::default();
    let mut redis = Redis::connect(addr)?;
    // Values that do not compress or deduplicate: a simple congruential generator.
    let mut seed = 1u64;
    for n in 0..keys {
        let mut value = Vec::with_capacity(bytes);
        while value.len() < bytes {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            value.extend_from_slice(&seed.to_le_bytes());
        }
        value.truncate(bytes);
        redis.send(&[b"SET", format!("fill:{n}").as_bytes(), &value], 1)?;
        redis.reply()?;
        report.replied(1);
    }
    Ok(report)
}

fn option(args: &[String], name: &str, default: &str) -> String {
    args.iter()
        .position(|a| a == name)
        .and_then(|i| args.get(i + 1))
        .map_or_else(|| default.to_owned(), Clone::clone)
}

fn main() -> Fallible<()> {
    let action = SigAction::new(
        SigHandler::Handler(on_signal),
        SaFlags::empty(),
        SigSet::empty(),
    );
    for s in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(s, &action)? };
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(mode), Some(addr)) = (args.first(), args.get(1)) else {
        return Err("usage: drover-counter count|load|fill ADDR:PORT [--out FILE] ...".into());
    };
    let key = option(&args, "--key", "drover:counter");
    let report = match mode.as_str() {
        "count" => count(addr, &key).json(),
        "load" => {
            let n: usize = option(&args, "--connections", "2").parse()?;
            let threads: Vec<_> = (0..n)
                .map(|i| {
                    let (addr, key) = (addr.clone(), format!("{key}:{i}"));
                    std::thread::spawn(move || load(&addr, &key))
                })
                .collect();
            let mut sum = Report::default();
            for t in threads {
                let Ok(r) = t.join() else {
                    sum.failed("a connection's thread panicked");
                    continue;
                };
                sum.replies += r.replies;
                sum.errors += r.errors;
                sum.skipped += r.skipped;
                sum.gap_ms_worst = sum.gap_ms_worst.max(r.gap_ms_worst);
                sum.first_error = sum.first_error.or(r.first_error);
            }
            sum.json()
        }
        "fill" => {
            let keys = option(&args, "--keys", "20000").parse()?;
            let bytes = option(&args, "--bytes", "1000").parse()?;
            fill(addr, keys, bytes)?.json()
        }
        other => return Err(format!("unknown mode '{other}'").into()),
    };
    let out = option(&args, "--out", "");
    if out.is_empty() {
        println!("{report}");
    } else {
        std::fs::write(out, report.to_string())?;
    }
    Ok(())
}
