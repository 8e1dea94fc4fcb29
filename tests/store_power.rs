//! Registry and journal when the power goes: images of a file system taken under a running writer,
//! as a disk would have them, and opened again.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use drover::store::{Change, Side, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const ROUNDS: u64 = 8;
const NAME: &str = "a_power_cut_loses_no_record";

/// A file system in an image file.
struct Mounted(PathBuf);

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

fn make_image(image: &Path) -> Result<(), String> {
    let file = fs::File::create(image).map_err(|e| e.to_string())?;
    file.set_len(48 << 20).map_err(|e| e.to_string())?;
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

/// Number `n` of the journal, and its twin in another table: one transaction.
fn write(s: &Store, n: u64) {
    let record = n.to_le_bytes().to_vec();
    s.transaction(vec![
        Change::PutMove {
            side: Side::Source,
            id: "current".into(),
            record: record.clone(),
        },
        Change::PutSetting {
            key: "twin".into(),
            value: record,
        },
    ])
    .unwrap();
}

#[test]
fn a_power_cut_loses_no_record() {
    if let Ok(dir) = std::env::var("DROVER_TEST_DIR") {
        let s = Store::open(Path::new(&dir)).unwrap();
        for n in 0.. {
            write(&s, n);
            writeln!(std::io::stdout(), "ACKNOWLEDGED {n}").unwrap();
        }
    }
    let base = tempfile::tempdir().unwrap();
    let (image, at) = (base.path().join("image"), base.path().join("disk"));
    fs::create_dir(&at).unwrap();
    let mounted = make_image(&image).and_then(|()| Mounted::new(&image, &at));
    let mounted = match mounted {
        Ok(m) => m,
        Err(e) => {
            println!("SKIPPED: an image cannot be mounted here ({e}); run as root");
            return;
        }
    };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env("DROVER_TEST_DIR", at.join("store"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    let stdout = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("ACKNOWLEDGED ") {
                let _ = tell.send(n.parse::<u64>().unwrap());
            }
        }
    });
    let mut images = Vec::new();
    let mut last = told.recv_timeout(Duration::from_secs(60)).unwrap();
    for round in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(50 + round * 97 % 300));
        // What was acknowledged before it stopped; what comes after is not asked for.
        last = told.try_iter().last().unwrap_or(last);
        kill(pid, Signal::SIGSTOP).unwrap();
        let copy = base.path().join(format!("image-{round}"));
        fs::copy(&image, &copy).unwrap();
        images.push((copy, last));
        kill(pid, Signal::SIGCONT).unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(mounted);
    for (round, (image, last)) in images.iter().enumerate() {
        let _mounted = Mounted::new(image, &at).unwrap();
        let s = Store::open(&at.join("store")).unwrap();
        let moves = s.moves(Side::Source).unwrap();
        let journal = u64::from_le_bytes(moves[0].1.as_slice().try_into().unwrap());
        assert!(journal >= *last, "round {round}: {journal} of {last}");
        // A transaction is there as a whole or not at all.
        assert_eq!(s.get("twin").unwrap().unwrap(), journal.to_le_bytes());
        assert_eq!(s.problems(), Vec::<String>::new(), "round {round}");
        // And it goes on from there.
        write(&s, journal + 1);
        assert_eq!(
            s.moves(Side::Source).unwrap()[0].1,
            (journal + 1).to_le_bytes()
        );
    }
    println!("{ROUNDS} power cuts, the last after {last} transactions");
    assert!(
        last > 20,
        "only {last} transactions: too few to show anything"
    );
}
