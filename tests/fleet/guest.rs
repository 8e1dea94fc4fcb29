//! A guest, played: what a helper says on its control port, on a real unix socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use drover::feature::FeatureName;
use drover::sample::{Counters, GuestTotals, MeterFrame, RawSample};
use drover::wire::frame::{self, Decoder, Kind};
use drover::wire::guest::{
    Call, Event, GuestFeature, GuestStatus, Message, PROTOCOL, Reply, Request,
};
use serde_json::json;

use super::Result;

/// What the stage sees of a guest.
#[derive(Debug, Clone, Default)]
pub struct Outside {
    /// It neither reads nor writes any more, as if its QEMU were stopped.
    pub hung: Arc<AtomicBool>,
    /// Frames sent.
    pub frames: Arc<AtomicU64>,
    /// When each was sent, milliseconds since the epoch.
    pub sent_ms: Arc<Mutex<Vec<i64>>>,
}

/// One guest.
pub struct Fake {
    /// Its number, from 1.
    pub number: u64,
    /// Its features.
    pub features: Vec<FeatureName>,
    /// Seen from outside.
    pub outside: Outside,
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as i64)
}

fn say(stream: &mut UnixStream, session: u32, message: &Message) -> Result<()> {
    let mut bytes = Vec::new();
    let text = serde_json::to_vec(message)?;
    frame::encode(Kind::Control, session, &text, &mut bytes)?;
    Ok(stream.write_all(&bytes)?)
}

impl Fake {
    fn reply(&self, call: &Call, every: &mut Duration) -> Reply {
        match call {
            Call::Hello { .. } => Reply::Hello {
                protocol: PROTOCOL,
                version: env!("CARGO_PKG_VERSION").into(),
                boot_id: format!("boot-{}", self.number),
            },
            Call::Meter { interval_ms } => {
                *every = Duration::from_millis(*interval_ms);
                Reply::Done
            }
            Call::Capabilities => serde_json::from_value(json!({"reply": "capabilities",
                "kernel": "6.12", "criu": "4.1", "criu_problem": "", "cpu_flags": "x",
                "systemd": "257"}))
            .unwrap_or(Reply::Done),
            Call::Status => Reply::Status(GuestStatus {
                features: self
                    .features
                    .iter()
                    .map(|f| GuestFeature {
                        feature: f.clone(),
                        running: true,
                        frozen: false,
                    })
                    .collect(),
                moves: Vec::new(),
            }),
            _ => Reply::Done,
        }
    }

    /// A frame as a busy guest sends it: most counters went on, some values are as before.
    fn meter(&self, elapsed: Duration, tick: u64) -> MeterFrame {
        let at_ns = elapsed.as_nanos() as u64 + 1_000_000_000;
        let usec = at_ns / 1000;
        let features = (0_u64..).zip(&self.features).map(|(n, f)| {
            let noise = (tick + n).wrapping_mul(6_364_136_223_846_793_005) >> 54;
            RawSample {
                feature: f.clone(),
                identity: self.number << 16 | n,
                at_ns,
                counters: Counters {
                    cpu_usec: Some(usec / 100 + noise),
                    cpu_user_usec: Some(usec / 150 + noise / 2),
                    cpu_system_usec: Some(usec / 300),
                    cpu_throttled_usec: Some(0),
                    memory_bytes: Some((64 << 20) + noise * 4096),
                    memory_anon_bytes: Some((32 << 20) + noise * 4096),
                    memory_file_bytes: Some(16 << 20),
                    memory_high_events: Some(0),
                    memory_max_events: Some(0),
                    oom_kills: Some(0),
                    net_rx_bytes: Some(tick * 1000 + noise),
                    net_tx_bytes: Some(tick * 3000 + noise),
                    disk_read_bytes: Some(0),
                    disk_write_bytes: Some(tick * 8192),
                    disk_reads: Some(0),
                    disk_writes: Some(tick * 2),
                    psi_cpu_usec: Some(usec / 1000),
                    psi_memory_usec: Some(0),
                    psi_io_usec: Some(usec / 2000),
                    processes: Some(5),
                },
            }
        });
        MeterFrame {
            at_ns,
            guest: GuestTotals {
                cpus: 2,
                cpu_busy_usec: usec / 2,
                cpu_steal_usec: 0,
                memory_total_bytes: 1 << 30,
                memory_available_bytes: 1 << 29,
            },
            features: features.collect(),
        }
    }

    /// Serves the control port until the host closes it.
    fn serve(&self, mut stream: UnixStream) -> Result<()> {
        let (mut decoder, mut session, mut every) = (Decoder::new(), 0, Duration::ZERO);
        let begin = Instant::now();
        // Guests are not in step.
        let mut next = begin + Duration::from_millis(self.number * 137 % 1000);
        let mut tick = 0;
        let mut buffer = vec![0; 64 << 10];
        loop {
            if self.outside.hung.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
            let wait = next.saturating_duration_since(Instant::now());
            let wait = wait.clamp(Duration::from_millis(1), Duration::from_millis(500));
            stream.set_read_timeout(Some(wait))?;
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => decoder.push(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
            while let Some(f) = decoder.next() {
                let request: Request = serde_json::from_slice(&f.payload)?;
                session = f.session;
                let reply = self.reply(&request.call, &mut every);
                let id = request.id;
                say(&mut stream, session, &Message::Response { id, reply })?;
            }
            if !every.is_zero() && Instant::now() >= next {
                next += every;
                tick += 1;
                let event = Event::Meter(self.meter(begin.elapsed(), tick));
                let at_ms = now_ms();
                say(&mut stream, session, &Message::Event { event })?;
                let sent = &self.outside.sent_ms;
                sent.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(at_ms);
                self.outside.frames.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes connections to its ports, on threads of its own.
    pub fn run(self, control: UnixListener, bulk: UnixListener) {
        std::thread::spawn(move || {
            // Nothing comes on the bulk port; it only has to be open.
            for mut stream in bulk.incoming().flatten() {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
            }
        });
        std::thread::spawn(move || {
            for stream in control.incoming().flatten() {
                // A connection that the host closed is over; the next one comes.
                let _ = self.serve(stream);
            }
        });
    }
}
