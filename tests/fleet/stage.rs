//! The real droverd on a bus of its own, with libvirt's test driver and a history on disk; only
//! the guests are played. Shared by the test and by the bench.

#[path = "guest.rs"]
pub mod guest;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use drover::feature::{FeatureName, FeatureSpec, Resource, Threshold, Workload};
use drover::store::{Change, FeatureRecord, Store};
use serde_json::Value;

use guest::{Fake, Outside};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Longest wait for what should come within seconds.
const PATIENCE: Duration = Duration::from_secs(180);

/// A process that is ended with this.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Binaries to run.
pub struct Binaries {
    pub droverd: PathBuf,
    pub drover: PathBuf,
}

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub guests: u64,
    /// Per guest.
    pub features: u64,
    pub interval_s: u64,
}

/// droverd and its guests.
pub struct Stage {
    dir: tempfile::TempDir,
    address: String,
    drover: PathBuf,
    droverd: Ends,
    _bus: Ends,
    metrics: u16,
    guests: Vec<Outside>,
}

/// Memory and CPU time of droverd.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub cpu_s: f64,
    pub rss_mib: f64,
    pub peak_mib: f64,
}

fn domain(n: u64) -> String {
    format!("g{n}")
}

fn uuid(n: u64) -> String {
    format!("00000000-0000-4000-8000-{n:012x}")
}

fn feature(guest: u64, n: u64) -> String {
    format!("f{guest}-{n}")
}

/// A feature as an administrator defines it: a unit with two thresholds.
fn record(guest: u64, n: u64) -> Result<FeatureRecord> {
    let name = FeatureName::new(&feature(guest, n))?;
    let unit = format!("{name}.service");
    let mut spec = FeatureSpec::new(name, Workload::Unit { unit });
    spec.thresholds = [(Resource::Cpu, 80.0), (Resource::Memory, 900.0)]
        .map(|(resource, limit)| Threshold {
            resource,
            limit,
            for_s: 30.0,
        })
        .to_vec();
    Ok(FeatureRecord {
        domain: domain(guest),
        spec,
        enabled: true,
        moved_at_ms: 0,
    })
}

fn domain_xml(n: u64, ports: &[(&str, &Path)]) -> String {
    let channel = |(name, path): &(&str, &Path)| {
        format!(
            "<channel type='unix'><source mode='bind' path='{}'/>\
             <target type='virtio' name='{name}'/></channel>",
            path.display()
        )
    };
    let channels: String = ports.iter().map(channel).collect();
    format!(
        "<domain type='test'><name>{}</name><uuid>{}</uuid><memory>1048576</memory><vcpu>2</vcpu>\
         <os><type>hvm</type></os><devices><controller type='virtio-serial' index='0'/>{channels}\
         </devices></domain>\n",
        domain(n),
        uuid(n)
    )
}

impl Stage {
    /// Registers the features, starts the guests, a bus and droverd.
    pub fn set(binaries: &Binaries, size: Size) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("state"))?;
        let store = Store::open(&at("state"))?;
        let (mut xml, mut guests) = (String::from("<node>\n"), Vec::new());
        for n in 1..=size.guests {
            let records = (0..size.features)
                .map(|f| record(n, f))
                .collect::<Result<Vec<_>>>()?;
            let [control, bulk] = ["control", "bulk"].map(|p| at(&format!("{n}-{p}")));
            let listeners = (UnixListener::bind(&control)?, UnixListener::bind(&bulk)?);
            let outside = Outside::default();
            let fake = Fake {
                number: n,
                features: records.iter().map(|r| r.spec.name.clone()).collect(),
                outside: outside.clone(),
            };
            fake.run(listeners.0, listeners.1);
            guests.push(outside);
            let put = records.into_iter().map(|record| Change::PutFeature {
                domain_uuid: uuid(n),
                record: Box::new(record),
            });
            store.transaction(put.collect())?;
            xml += &domain_xml(
                n,
                &[
                    ("org.drover.control.0", &control),
                    ("org.drover.bulk.0", &bulk),
                ],
            );
        }
        drop(store);
        std::fs::write(at("node.xml"), xml + "</node>\n")?;
        // A port that was free a moment ago.
        let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        std::fs::write(
            at("drover.toml"),
            format!(
                "[host]\nname = 'bench'\n[libvirt]\nuri = 'test://{0}/node.xml'\n\
                 hook_socket = '{0}/hook.sock'\n[meter]\ninterval_s = {1}\n\
                 [history]\ndir = '{0}/history'\nstate_dir = '{0}/state'\n\
                 [metrics]\nlisten = '127.0.0.1:{metrics}'\n",
                dir.path().display(),
                size.interval_s
            ),
        )?;
        std::fs::write(
            at("bus.conf"),
            format!(
                "<busconfig><type>session</type><listen>unix:path={}/bus</listen>\
                 <auth>EXTERNAL</auth><policy context='default'><allow user='*'/><allow own='*'/>\
                 <allow send_destination='*'/><allow receive_sender='*'/></policy></busconfig>",
                dir.path().display()
            ),
        )?;
        let mut bus = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", at("bus.conf").display()))
            .args(["--print-address", "--nofork"])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        let out = bus.stdout.take().ok_or("no output of dbus-daemon")?;
        BufReader::new(out).read_line(&mut address)?;
        let address = address.trim().to_owned();
        let log = std::fs::File::create(at("log"))?;
        let droverd = Command::new(&binaries.droverd)
            .arg("--config")
            .arg(at("drover.toml"))
            .env("DBUS_SYSTEM_BUS_ADDRESS", &address)
            .env("RUST_LOG", "warn")
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self {
            address,
            drover: binaries.drover.clone(),
            droverd: Ends(droverd),
            _bus: Ends(bus),
            metrics,
            guests,
            dir,
        })
    }

    /// A guest by its number, from 1.
    pub fn guest(&self, n: u64) -> &Outside {
        &self.guests[n as usize - 1]
    }

    /// droverd's process.
    pub fn pid(&self) -> u32 {
        self.droverd.0.id()
    }

    /// Frames that all guests sent.
    pub fn frames(&self) -> u64 {
        let of = |g: &Outside| g.frames.load(Ordering::Relaxed);
        self.guests.iter().map(of).sum()
    }

    /// Waits until every guest of these numbers has sent so many frames more.
    pub fn wait_for(&self, guests: impl Iterator<Item = u64>, more: u64) -> Result<()> {
        let frames = |n: &u64| self.guest(*n).frames.load(Ordering::Relaxed);
        let wanted: Vec<(u64, u64)> = guests.map(|n| (n, frames(&n) + more)).collect();
        let begin = Instant::now();
        while let Some((n, _)) = wanted.iter().find(|(n, to)| frames(n) < *to) {
            if begin.elapsed() > PATIENCE {
                return Err(format!("guest {n} is not metered:\n{}", self.log()?).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The end of droverd's log.
    pub fn log(&self) -> Result<String> {
        let log = std::fs::read_to_string(self.dir.path().join("log"))?;
        let lines: Vec<&str> = log.lines().collect();
        Ok(lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    /// What droverd used so far.
    pub fn cost(&self) -> Result<Cost> {
        let proc = PathBuf::from(format!("/proc/{}", self.pid()));
        let stat = std::fs::read_to_string(proc.join("stat"))?;
        let rest = stat.rsplit_once(')').ok_or("no stat")?.1;
        let ticks = |n: usize| -> Result<f64> {
            Ok(rest
                .split_whitespace()
                .nth(n)
                .ok_or("no field")?
                .parse::<f64>()?)
        };
        let status = std::fs::read_to_string(proc.join("status"))?;
        let mib = |key: &str| -> Result<f64> {
            let line = status
                .lines()
                .find(|l| l.starts_with(key))
                .ok_or("no status")?;
            Ok(line
                .split_whitespace()
                .nth(1)
                .ok_or("no value")?
                .parse::<f64>()?
                / 1024.0)
        };
        Ok(Cost {
            cpu_s: (ticks(11)? + ticks(12)?) / 100.0,
            rss_mib: mib("VmRSS:")?,
            peak_mib: mib("VmHWM:")?,
        })
    }

    /// Reads the metrics page, as Prometheus does; returns its length.
    pub fn scrape(&self) -> Result<usize> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut page = Vec::new();
        Ok(stream.read_to_end(&mut page)?)
    }

    /// Times of the points of a guest's first feature, milliseconds since the epoch.
    pub fn times(&self, guest: u64) -> Result<Vec<i64>> {
        let out = Command::new(&self.drover)
            .args([
                "--format",
                "json",
                "history",
                &domain(guest),
                &feature(guest, 0),
            ])
            .args(["--since", "1h"])
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .output()?;
        let points: Vec<Value> = serde_json::from_slice(&out.stdout)
            .map_err(|e| format!("{e}: {}", String::from_utf8_lossy(&out.stderr)))?;
        let time = |p: &Value| p["at_ms"].as_i64().or_else(|| p["time_ms"].as_i64());
        Ok(points.iter().filter_map(time).collect())
    }

    /// How long after each was sent the frames of a guest were metered, milliseconds, of those
    /// metered in a span of time.
    pub fn delays(&self, guest: u64, from_ms: i64, to_ms: i64) -> Result<Vec<i64>> {
        let sent = &self.guest(guest).sent_ms;
        let sent = sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let times = self.times(guest)?.into_iter();
        let within = times.filter(|t| (from_ms..to_ms).contains(t));
        Ok(within
            .filter_map(|t| {
                let before = sent.partition_point(|s| *s <= t);
                Some(t - sent.get(before.checked_sub(1)?)?)
            })
            .collect())
    }
}
