//! Runs of the program and what is expected of each.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::dbus_support::Bus;

/// What a run of `drover` left.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn command(address: &str, args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_drover"));
    c.args(args)
        .env("DBUS_SYSTEM_BUS_ADDRESS", address)
        .env_remove("COLUMNS")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    c
}

pub async fn run(mut c: Command) -> Ran {
    let o = tokio::task::spawn_blocking(move || c.output().unwrap());
    let o = o.await.unwrap();
    Ran {
        code: o.status.code().expect("not ended by a signal"),
        out: String::from_utf8(o.stdout).unwrap(),
        err: String::from_utf8(o.stderr).unwrap(),
    }
}

pub async fn drover(bus: &Bus, args: &[&str]) -> Ran {
    run(command(&bus.address, args)).await
}

/// Runs it, expects success and nothing on standard error.
pub async fn good(bus: &Bus, args: &[&str]) -> String {
    let r = drover(bus, args).await;
    assert_eq!((r.code, r.err.as_str()), (0, ""), "{args:?}: {}", r.out);
    r.out
}

/// Runs it, expects one line `error: ...` and the exit code.
pub async fn bad(bus: &Bus, code: i32, args: &[&str]) -> String {
    let r = drover(bus, args).await;
    assert_eq!(r.code, code, "{args:?}: {}{}", r.out, r.err);
    let last = r.err.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("error: "), "{}", r.err);
    assert_eq!(r.err.lines().count(), 1, "{}", r.err);
    last
}

pub async fn as_json<T: serde::de::DeserializeOwned>(bus: &Bus, args: &[&str]) -> T {
    let mut all = vec!["--format", "json"];
    all.extend(args);
    serde_json::from_str(&good(bus, &all).await).unwrap()
}

/// A terminal with `drover` in it.
pub struct Terminal {
    input: std::fs::File,
    seen: mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Terminal {
    /// All of it on the terminal.
    pub fn start(c: Command) -> (Self, Child) {
        Self::with(c, false)
    }

    /// Only standard error on the terminal; standard output is a pipe.
    pub fn on_error(c: Command) -> (Self, Child) {
        Self::with(c, true)
    }

    fn with(mut c: Command, error_only: bool) -> (Self, Child) {
        let size = nix::pty::Winsize {
            ws_row: 24,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = nix::pty::openpty(Some(&size), None).unwrap();
        c.env("TERM", "xterm")
            .stderr(pty.slave.try_clone().unwrap());
        if error_only {
            drop(pty.slave);
            c.stdout(Stdio::piped());
        } else {
            c.stdin(pty.slave.try_clone().unwrap()).stdout(pty.slave);
        }
        let child = c.spawn().unwrap();
        drop(c);
        let input = std::fs::File::from(pty.master);
        let mut output = input.try_clone().unwrap();
        let (tell, seen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut part) {
                if tell.send(part[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let text = String::new();
        (Self { input, seen, text }, child)
    }

    pub fn send(&mut self, keys: &str) {
        self.input.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until `part` came; what came with it.
    pub fn wait(&mut self, part: &str) -> String {
        loop {
            if let Some(at) = self.text.find(part) {
                return self.text.drain(..at + part.len()).collect();
            }
            let more = self.seen.recv_timeout(Duration::from_secs(20));
            let more = more.unwrap_or_else(|_| panic!("no {part:?} in {:?}", self.text));
            self.text.push_str(&String::from_utf8_lossy(&more));
        }
    }
}
