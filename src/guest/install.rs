//! The helper's installation in a guest, through the QEMU guest agent.
//!
//! ```text
//! agent allows it? -> push binary, udev rule and unit beside their names -> rename
//!   -> reload udev and systemd -> plug in the ports -> restart or start the unit
//! ```
//! The files come before the ports, so that the rule is there when the port appears.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::shell::Shell;
use crate::hypervisor::{Hypervisor, HypervisorError};
use crate::wire::guest::CONTROL_PORT;

const RULE: &str = include_str!("../../packaging/guest/90-drover-guest.rules");
const RULE_PATH: &str = "/etc/udev/rules.d/90-drover-guest.rules";
const UNIT: &str = include_str!("../../packaging/guest/drover-guest.service");
const UNIT_PATH: &str = "/etc/systemd/system/drover-guest.service";
const BINARY_PATH: &str = "/usr/lib/drover/drover-guest";
/// Largest helper that is pushed, bytes.
const MAX_BINARY: u64 = 256 << 20;
/// Limit of a short command in the guest.
const SHORT: Duration = Duration::from_secs(60);
/// Limit of starting and stopping the unit.
const LONG: Duration = Duration::from_secs(120);

/// Why the helper could not be installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The helper's binary cannot be read on this host.
    #[error("cannot read the helper's binary {path}")]
    Binary {
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// No agent answers in the guest.
    #[error(
        "no QEMU guest agent answers in domain '{domain}': install and start qemu-guest-agent \
         there, with the channel org.qemu.guest_agent.0; or copy the helper into the guest by \
         other means and plug in its ports"
    )]
    NoAgent {
        /// Domain.
        domain: String,
        /// Cause.
        #[source]
        source: HypervisorError,
    },
    /// The agent answers but forbids what is needed.
    #[error(
        "the guest agent of domain '{domain}' forbids {commands} (the default in the RHEL \
         family): allow them in the guest's /etc/sysconfig/qemu-ga (FILTER_RPC_ARGS or \
         BLOCK_RPCS) and restart qemu-guest-agent, or copy the helper into the guest by other \
         means"
    )]
    Forbidden {
        /// Domain.
        domain: String,
        /// The commands.
        commands: String,
    },
    /// A step in the guest failed.
    #[error("domain '{domain}': {step} failed: {output}")]
    Step {
        /// Domain.
        domain: String,
        /// Step.
        step: String,
        /// What it printed.
        output: String,
    },
    /// libvirt failed.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
}

/// Installs the helper `binary` (statically linked) in a running domain, or upgrades it, and
/// starts it. `progress` gets a line per step. Features that run are not touched.
pub async fn install(
    hv: &Hypervisor,
    domain: &str,
    binary: &Path,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), InstallError> {
    let content = read(binary).await.map_err(|source| InstallError::Binary {
        path: binary.to_owned(),
        source,
    })?;
    progress("asking the guest agent");
    let shell = Shell::open(hv, domain).await?;
    let step = "making the helper's directories";
    shell
        .run(
            step,
            "mkdir -p /usr/lib/drover /etc/udev/rules.d /etc/systemd/system",
            SHORT,
        )
        .await?;
    let mib = |n: usize| n as f64 / f64::from(1 << 20);
    let told = std::sync::atomic::AtomicUsize::new(0);
    let files = [
        (BINARY_PATH, content.as_slice(), "0755"),
        (RULE_PATH, RULE.as_bytes(), "0644"),
        (UNIT_PATH, UNIT.as_bytes(), "0644"),
    ];
    for (path, content, _) in files {
        let all = content.len();
        progress(&format!("copying {path}, {:.1} MiB", mib(all)));
        shell
            .write(&temporary(path), content, |done| {
                // A line every MiB.
                if done >> 20 > told.fetch_max(done >> 20, std::sync::atomic::Ordering::Relaxed) {
                    progress(&format!("copied {:.0} of {:.1} MiB", mib(done), mib(all)));
                }
            })
            .await?;
    }
    progress("putting the files in place");
    // A running helper keeps its old file; sizes tell whether everything arrived.
    let mut script = String::from("set -e\n");
    for (path, content, mode) in files {
        let new = temporary(path);
        let size = content.len();
        // Writing to a string cannot fail.
        let _ = writeln!(script, "test \"$(wc -c < {new})\" -eq {size}");
        let _ = writeln!(script, "chmod {mode} {new}\nsync {new}\nmv -f {new} {path}");
    }
    script += "systemctl daemon-reload\nudevadm control --reload\n";
    shell
        .run("putting the files in place", &script, SHORT)
        .await?;
    progress("plugging in the ports");
    hv.ensure_channels(domain).await?;
    progress("starting the helper");
    shell
        .run("starting the helper", &start_script(), LONG)
        .await?;
    progress("the helper runs");
    Ok(())
}

/// Stops and removes the helper, and unplugs its ports. Features that run are not touched. In a
/// domain that does not run, only the ports are removed from its definition.
pub async fn remove(
    hv: &Hypervisor,
    domain: &str,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), InstallError> {
    let running = hv
        .domains()
        .await?
        .into_iter()
        .find(|d| d.name == domain)
        .ok_or_else(|| HypervisorError::NoDomain(domain.to_owned()))?
        .running;
    if running {
        progress("asking the guest agent");
        let shell = Shell::open(hv, domain).await?;
        progress("stopping the helper and removing its files");
        let files: Vec<String> = [BINARY_PATH, RULE_PATH, UNIT_PATH]
            .iter()
            .flat_map(|p| [(*p).to_owned(), temporary(p)])
            .collect();
        let script = format!(
            "systemctl stop drover-guest.service\nset -e\nrm -f {}\n\
             rmdir /usr/lib/drover 2>/dev/null || true\n\
             rm -f /var/lib/drover/init\nrmdir /var/lib/drover 2>/dev/null || true\n\
             systemctl daemon-reload\nudevadm control --reload\n",
            files.join(" ")
        );
        shell.run("removing the helper", &script, LONG).await?;
    }
    progress("unplugging the ports");
    hv.remove_channels(domain).await?;
    progress("the helper is removed");
    Ok(())
}

async fn read(binary: &Path) -> std::io::Result<Vec<u8>> {
    let size = tokio::fs::metadata(binary).await?.len();
    if size == 0 || size > MAX_BINARY {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("{size} bytes are no plausible size"),
        ));
    }
    tokio::fs::read(binary).await
}

fn temporary(path: &str) -> String {
    format!("{path}.drover-new")
}

/// Starts the unit, or restarts it when it runs. The port's event is repeated first: the port may
/// have been there before the rule.
fn start_script() -> String {
    format!(
        r#"was=$(systemctl is-active drover-guest.service)
for n in 1 2 3 4 5 6 7 8 9 10; do
    test -e /dev/virtio-ports/{CONTROL_PORT} && break
    sleep 1
done
test -e /dev/virtio-ports/{CONTROL_PORT} || {{ echo "the port {CONTROL_PORT} did not appear"; exit 1; }}
udevadm trigger --action=add "$(readlink -f /dev/virtio-ports/{CONTROL_PORT})"
udevadm settle --timeout=10
if test "$was" = active; then verb=restart; else verb=start; fi
timeout 60 systemctl $verb drover-guest.service || {{
    systemctl status --no-pager --lines=5 drover-guest.service; exit 1; }}
sleep 1
test "$(systemctl is-active drover-guest.service)" = active || {{
    systemctl status --no-pager --lines=10 drover-guest.service; exit 1; }}
"#
    )
}
