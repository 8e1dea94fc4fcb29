//! `drover doctor`: looks at everything that Drover needs on this host and says what to do.
//!
//! [`look`] gathers facts from files and libvirt, `droverd` adds what it knows if it is there,
//! [`host`] and [`guests`] judge them (pure), [`finding`] prints. It changes nothing.

pub mod finding;
pub mod guests;
pub mod host;
mod look;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;

use super::client::Client;
use super::error::CliError;
use super::screen::Screen;
use super::time::now_ms;
use crate::api::FeatureRow;
use crate::config::Config;
use crate::host::HostState;
use finding::{Finding, Report};
use guests::DomainFacts;

/// Where the hook is installed.
const HOOK: &str = "/etc/libvirt/hooks/qemu.d/50-drover";

/// What a running droverd says.
struct Told {
    version: String,
    hosts: Vec<HostState>,
    features: Vec<FeatureRow>,
    /// Features whose history cannot be read, and why.
    history: Vec<(String, String)>,
}

/// Runs all checks and prints them; `timeout` limits each answer of droverd.
pub async fn doctor(
    out: &mut dyn Write,
    json: bool,
    screen: &Screen,
    config: &Path,
    timeout: Duration,
) -> Result<(), CliError> {
    let report = examine(config, timeout).await;
    if json {
        report.json(out)?;
    } else {
        report.table(out, screen)?;
    }
    report.verdict()
}

async fn ask(timeout: Duration) -> Result<Told, CliError> {
    let client = Client::connect(timeout).await?;
    let (version, _) = client.version().await?;
    let hosts = client.hosts().await?;
    let features = client.features().await?;
    let now = now_ms();
    let range = (now - 3_600_000, now);
    let reads = features.iter().take(guests::MAX_HISTORIES).map(async |f| {
        let read = client.history(&f.domain, &f.spec.name, range, 1).await;
        Some((format!("{}/{}", f.domain, f.spec.name), read.err()?))
    });
    let bad = join_all(reads).await.into_iter().flatten();
    let history = bad.map(|(name, e)| (name, e.to_string())).collect();
    Ok(Told {
        version,
        hosts,
        features,
        history,
    })
}

async fn examine(path: &Path, timeout: Duration) -> Report {
    let mut all = vec![host::user(look::is_root())];
    let config = match Config::load(path) {
        Ok(c) => {
            let found = format!("{} is valid, host '{}'", path.display(), c.host.name);
            all.push(Finding::ok("configuration", found));
            Some(c)
        }
        Err(e) => {
            all.push(host::configuration(&look::with_causes(&e)));
            None
        }
    };
    let told = ask(timeout).await;
    all.push(host::daemon(
        told.as_ref()
            .map(|t| t.version.as_str())
            .map_err(ToString::to_string),
    ));
    let told = told.ok();
    all.push(host::polkit(look::polkit().await));
    if let Some(dir) = config.as_ref().map(|c| &c.features.dir) {
        let found = crate::feature_file::read_dir(dir);
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        all.push(host::feature_files(dir, found.features.len(), &errors));
    }

    let libvirt = config.as_ref().map(|c| c.libvirt.clone());
    let seen = look::libvirt(&libvirt.unwrap_or_default()).await;
    all.push(host::libvirt(&seen.version));
    let hook = look::hook(Path::new(HOOK)).await;
    all.extend(host::security(&look::security(), &hook));
    all.push(host::hook(HOOK, &hook));

    let section = config.as_ref().and_then(|c| c.peer.as_ref());
    match (&config, section) {
        (Some(c), Some(p)) => {
            if p.listen.is_some() {
                all.extend(look::certificates(p, &c.host.name));
                all.extend(look::keys(p));
            }
            let probes = p.hosts.iter().map(|h| look::reach(p, h));
            let probes = join_all(probes).await;
            let heard = told.as_ref().map(|t| t.hosts.as_slice());
            for (peer, port) in p.hosts.iter().zip(probes) {
                all.extend(host::peer(peer, heard, &port));
            }
        }
        (Some(_), None) => all.push(Finding::ok("peers", "none configured: this host is alone")),
        (None, _) => {}
    }
    let history = config.as_ref().map(|c| c.history.clone());
    for (dir, what) in look::directories(&history.unwrap_or_default()) {
        all.push(host::disk(&dir, &what));
    }

    let here = told.as_ref().and_then(|t| t.hosts.first());
    let instances = here.map(|h| h.instances.as_slice()).unwrap_or_default();
    let mut domains: Vec<DomainFacts> = seen.domains;
    for i in instances.iter().filter(|i| i.running) {
        match domains.iter_mut().find(|d| d.name == i.domain) {
            Some(d) => d.instance = Some(i.clone()),
            None => domains.push(DomainFacts {
                name: i.domain.clone(),
                instance: Some(i.clone()),
                ..DomainFacts::default()
            }),
        }
    }
    for d in &domains {
        all.extend(guests::domain(d, told.as_ref().map(|t| t.version.as_str())));
    }
    if let Some(t) = &told {
        let interval = config.as_ref().map_or(5.0, |c| c.meter.interval_s);
        let now = now_ms();
        all.extend(
            t.features
                .iter()
                .filter_map(|f| guests::feature(f, now, interval)),
        );
        all.push(guests::history(&t.history, t.features.len()));
    }
    Report { findings: all }
}
