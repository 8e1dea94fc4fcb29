//! A load of known size, to check the meter against and to push a feature over its threshold.
//!
//! ```text
//! drover-load cpu                                 one busy thread
//! drover-load mem MIB                             touches MIB mebibytes and holds them
//! drover-load write MIB_PER_S PATH                O_DIRECT into a file of 64 MiB, paced
//! drover-load busy PATH                           a little of everything, several times a second
//! drover-load udp-send ADDR:PORT BYTES COUNT RATE COUNT datagrams, RATE per second (0: fast)
//! drover-load udp-sink [ADDR:]PORT                receives
//! ```
//!
//! At its end, or on SIGTERM or SIGINT, it prints one line of JSON that says what it did.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

const USAGE: &str = "usage: drover-load cpu | mem MIB | write MIB_PER_S PATH | busy PATH
       | udp-send ADDR:PORT BYTES COUNT RATE | udp-sink [ADDR:]PORT";
const MIB: usize = 1 << 20;
/// Size of the file that `write` goes round in.
const FILE: u64 = 64 << 20;
/// Bytes of one write; a multiple of every device's block.
const BLOCK: usize = 256 << 10;

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

fn stopping() -> bool {
    STOP.load(Ordering::Relaxed)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let handler = stop as extern "C" fn(libc::c_int);
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    let begin = Instant::now();
    match load(&args) {
        Ok(mut report) => {
            report["seconds"] = json!(begin.elapsed().as_secs_f64());
            report["cpu_seconds"] = json!(cpu_seconds());
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("drover-load: {e}");
            ExitCode::FAILURE
        }
    }
}

fn load(args: &[&str]) -> io::Result<Value> {
    match args {
        ["cpu"] => Ok(burn()),
        ["mem", mib] => Ok(hold(number(mib)? as usize)),
        ["write", rate, path] => write(number(rate)?, path),
        ["udp-send", to, bytes, count, rate] => {
            udp_send(to, number(bytes)? as usize, number(count)?, number(rate)?)
        }
        ["udp-sink", at] => udp_sink(at),
        ["busy", path] => busy(path),
        _ => Err(io::Error::new(ErrorKind::InvalidInput, USAGE)),
    }
}

fn number(text: &str) -> io::Result<u64> {
    let bad = |_| io::Error::new(ErrorKind::InvalidInput, format!("'{text}' is not a number"));
    text.parse().map_err(bad)
}

/// CPU time of this process in seconds.
fn cpu_seconds() -> f64 {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map_or(0.0, |t| t.tv_sec() as f64 + t.tv_nsec() as f64 / 1e9)
}

fn burn() -> Value {
    let mut rounds = 0_u64;
    let mut x = 1_u64;
    while !stopping() {
        for _ in 0..100_000 {
            x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        rounds += 1;
    }
    json!({"load": "cpu", "rounds": rounds})
}

fn hold(mib: usize) -> Value {
    // Not zeroes: every page differs from the others, so none can be shared or left out.
    let mut held: Vec<u64> = Vec::with_capacity(mib * MIB / 8);
    held.extend((0..(mib * MIB / 8) as u64).map(|n| n | 1 << 63));
    while !stopping() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let sum = std::hint::black_box(&held)
        .iter()
        .step_by(512)
        .fold(0_u64, |a, b| a ^ b);
    json!({"load": "mem", "bytes": held.len() * 8, "sum": sum})
}

/// Changes every counter of its cgroup each second at little cost: 5 times a second some CPU time
/// and other memory, once a second one block written.
fn busy(path: &str) -> io::Result<Value> {
    const BYTES: usize = 4096;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    // O_DIRECT wants the buffer at a block's boundary.
    let space = vec![0x5a_u8; 2 * BYTES];
    let at = space.as_ptr().align_offset(BYTES);
    let mut rounds = 0_u64;
    while !stopping() {
        let memory: Vec<u8> = vec![1; (1 + rounds as usize % 4) * 65_536];
        std::hint::black_box(&memory);
        if rounds.is_multiple_of(5) {
            file.write_all_at(&space[at..at + BYTES], 0)?;
        }
        drop(memory);
        std::thread::sleep(Duration::from_millis(200));
        rounds += 1;
    }
    Ok(json!({"load": "busy", "rounds": rounds}))
}

fn write(mib_per_s: u64, path: &str) -> io::Result<Value> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    nix::fcntl::posix_fallocate(&file, 0, FILE.cast_signed())?;
    // O_DIRECT wants the buffer at a block's boundary.
    let space = vec![0x5a_u8; BLOCK + 4096];
    let at = space.as_ptr().align_offset(4096);
    let block = &space[at..at + BLOCK];
    let begin = Instant::now();
    let mut written = 0_u64;
    while !stopping() {
        file.write_all_at(block, written % FILE)?;
        written += BLOCK as u64;
        pace(begin, written as f64, (mib_per_s * MIB as u64) as f64);
    }
    Ok(json!({"load": "write", "bytes": written}))
}

/// Waits until `done` units are due at `rate` units per second; rate 0 never waits.
fn pace(begin: Instant, done: f64, rate: f64) {
    while rate > 0.0 && !stopping() {
        let early = done / rate - begin.elapsed().as_secs_f64();
        if early <= 0.0 {
            return;
        }
        std::thread::sleep(Duration::from_secs_f64(early.min(0.1)));
    }
}

fn udp_send(to: &str, bytes: usize, count: u64, rate: u64) -> io::Result<Value> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    let datagram = vec![0x5a_u8; bytes];
    let (mut sent, mut refused) = (0_u64, 0_u64);
    let begin = Instant::now();
    while sent + refused < count && !stopping() {
        match socket.send(&datagram) {
            Ok(_) => sent += 1,
            // Nobody listens there: the datagram before this one was sent all the same.
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => refused += 1,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        pace(begin, (sent + refused) as f64, rate as f64);
    }
    Ok(json!({
        "load": "udp-send", "datagrams": sent, "refused": refused, "payload_bytes": sent * bytes as u64,
        "link_bytes": sent * (bytes as u64 + 42),
    }))
}

fn udp_sink(at: &str) -> io::Result<Value> {
    let at = if at.contains(':') {
        at.to_owned()
    } else {
        format!("0.0.0.0:{at}")
    };
    let socket = UdpSocket::bind(at)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut buffer = vec![0; 65536];
    let (mut datagrams, mut bytes) = (0_u64, 0_u64);
    while !stopping() {
        match socket.recv(&mut buffer) {
            Ok(n) => {
                datagrams += 1;
                bytes += n as u64;
            }
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(json!({"load": "udp-sink", "datagrams": datagrams, "payload_bytes": bytes}))
}
