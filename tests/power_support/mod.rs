//! What goes when the power does: images of a file system taken under a running writer, as a disk
//! would have them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Cuts of a run.
pub const ROUNDS: u64 = 8;
/// Tells the writer where to write.
const DIRECTORY: &str = "DROVER_TEST_DIR";

/// A file system in an image file.
pub struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: &Path) -> Result<Self, String> {
        let done = Command::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(at)
            .output();
        let done = done.map_err(|e| e.to_string())?;
        if done.status.success() {
            Ok(Self(at.to_owned()))
        } else {
            Err(String::from_utf8_lossy(&done.stderr).trim().to_owned())
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn make_image(image: &Path, mib: u64) -> Result<(), String> {
    let file = fs::File::create(image).map_err(|e| e.to_string())?;
    file.set_len(mib << 20).map_err(|e| e.to_string())?;
    let done = Command::new("mkfs.ext4")
        .args(["-q", "-F"])
        .arg(image)
        .output();
    let done = done.map_err(|e| format!("mkfs.ext4: {e}"))?;
    done.status
        .success()
        .then_some(())
        .ok_or_else(|| String::from_utf8_lossy(&done.stderr).into_owned())
}

/// What a file holds at one instant. The kernel writes to the image after its writer stopped, and
/// reading takes time: no power cut leaves a journal of one instant with the blocks of a later
/// one. Two readings that are equal had nothing written between them.
fn at_one_instant(image: &Path) -> Vec<u8> {
    let mut before = fs::read(image).unwrap();
    for _ in 0..100 {
        let after = fs::read(image).unwrap();
        if before == after {
            return after;
        }
        before = after;
    }
    panic!("{}: written to without an end", image.display());
}

/// Where to write, in the process that is the writer.
pub fn writer() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// The writer's word that `n` is durable.
pub fn acknowledge(n: i64) {
    let mut out = std::io::stdout();
    writeln!(out, "ACKNOWLEDGED {n}").unwrap();
}

/// Images of the power cuts, each with the latest word before it.
pub struct Cuts {
    base: tempfile::TempDir,
    /// The images, oldest first.
    pub images: Vec<(PathBuf, i64)>,
}

impl Cuts {
    /// Runs the test `name` as the writer and cuts the power of its file system of so many MiB
    /// [`ROUNDS`] times, `pause(round)` milliseconds apart. `None` where that is not allowed.
    pub fn of(name: &str, mib: u64, pause: impl Fn(u64) -> u64) -> Option<Self> {
        let base = tempfile::tempdir().unwrap();
        let (image, at) = (base.path().join("image"), base.path().join("disk"));
        fs::create_dir(&at).unwrap();
        let mounted = make_image(&image, mib).and_then(|()| Mounted::new(&image, &at));
        let mounted = match mounted {
            Ok(m) => m,
            Err(e) => {
                println!("SKIPPED: an image cannot be mounted here ({e}); run as root");
                return None;
            }
        };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(DIRECTORY, at.join("written"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let (tell, told) = std::sync::mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(n) = line.strip_prefix("ACKNOWLEDGED ") {
                    let _ = tell.send(n.parse::<i64>().unwrap());
                }
            }
        });
        let mut images = Vec::new();
        let mut last = told.recv_timeout(Duration::from_secs(60)).unwrap();
        for round in 0..ROUNDS {
            std::thread::sleep(Duration::from_millis(pause(round)));
            // What was acknowledged before it stopped; what comes after is not asked for.
            last = told.try_iter().last().unwrap_or(last);
            kill(pid, Signal::SIGSTOP).unwrap();
            let copy = base.path().join(format!("image-{round}"));
            fs::write(&copy, at_one_instant(&image)).unwrap();
            images.push((copy, last));
            kill(pid, Signal::SIGCONT).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        drop(mounted);
        Some(Self { base, images })
    }

    /// What was written, as an image has it, as long as the answer lives.
    pub fn look(&self, image: &Path) -> (Mounted, PathBuf) {
        let at = self.base.path().join("disk");
        (Mounted::new(image, &at).unwrap(), at.join("written"))
    }

    /// The latest word of all.
    pub fn last(&self) -> i64 {
        self.images.last().map_or(0, |(_, last)| *last)
    }
}
