//! Runs of the program and what is expected of each.

use std::process::{Command, Stdio};

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
