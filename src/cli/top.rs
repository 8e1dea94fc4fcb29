//! `drover top`: live, on a terminal; once, anywhere.

use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

use super::args::{Cli, Format};
use super::client::{Client, Result};
use super::screen::{Screen, Style, terminal_size};
use super::time::now_ms;
use super::views::{self, top as view};
use crate::api::{FeatureRow, HistoryQuery};
use crate::feature::Resource;
use view::{Recent, Sort};

/// Features whose history is asked for when they appear; the others' sparklines grow.
const PREFILL: usize = 40;
/// Distance of the values of a sparkline, milliseconds.
const STEP_MS: i64 = 10_000;
/// Lines when the terminal does not tell.
const LINES: usize = 24;

/// Options of the command.
pub(super) struct Options {
    pub(super) once: bool,
    pub(super) every: Duration,
    pub(super) sort: Sort,
    pub(super) reverse: bool,
}

struct State {
    sort: Sort,
    reverse: bool,
    from: usize,
    recent: Recent,
    spark: Resource,
}

/// Shows the features of this host, the busiest first.
pub(super) async fn top(
    cli: &Cli,
    out: &mut dyn Write,
    screen: &Screen,
    client: &Client,
    options: &Options,
) -> Result<()> {
    let mut state = State {
        sort: options.sort,
        reverse: options.reverse,
        from: 0,
        recent: Recent::default(),
        spark: spark_of(options.sort),
    };
    let live = !options.once && screen.terminal && std::io::stdin().is_terminal();
    if !live {
        let rows = gather(client, &mut state).await?;
        if cli.format == Format::Json {
            views::json(out, &rows)?;
        } else {
            view::top(
                out,
                &rows,
                (0, usize::MAX),
                (&state.recent, state.spark),
                screen,
            )?;
        }
        return Ok(());
    }
    let _raw = Raw::enter(out)?;
    let mut keys = keys();
    let mut stop = super::interrupts()?;
    let mut rows = gather(client, &mut state).await?;
    loop {
        draw(out, &rows, &state, options.every)?;
        let key = tokio::select! {
            key = keys.recv() => key,
            () = tokio::time::sleep(options.every) => None,
            _ = stop.recv() => return Ok(()),
        };
        match key {
            Some(b'q' | 3 | 4) => return Ok(()),
            Some(b'r') => state.reverse = !state.reverse,
            Some(b'j') if state.from + 1 < rows.len() => state.from += 1,
            Some(b'k') => state.from = state.from.saturating_sub(1),
            Some(k) => {
                let known = Sort::KEYS.iter().find(|(c, _)| *c as u32 == u32::from(k));
                if let Some((_, by)) = known {
                    state.sort = *by;
                    if spark_of(*by) != state.spark {
                        state.spark = spark_of(*by);
                        state.recent = Recent::default();
                    }
                }
            }
            None => {}
        }
        let answer = tokio::select! {
            answer = gather(client, &mut state) => answer,
            _ = stop.recv() => return Ok(()),
        };
        rows = answer?;
    }
}

fn spark_of(sort: Sort) -> Resource {
    match sort {
        Sort::By(r) => r,
        Sort::Name => Resource::Cpu,
    }
}

/// The features, sorted, and what is new of them.
async fn gather(client: &Client, state: &mut State) -> Result<Vec<FeatureRow>> {
    let mut rows = client.features().await?;
    view::sort(&mut rows, state.sort, state.reverse);
    for (n, row) in rows.iter().enumerate() {
        let key = (row.domain.clone(), row.spec.name.clone());
        if !state.recent.knows(&key) && n < PREFILL {
            let now = now_ms();
            let query = HistoryQuery {
                since_ms: now - STEP_MS * i64::try_from(view::SPARK).unwrap_or(0),
                until_ms: now,
                step_ms: Some(STEP_MS),
                limit: view::SPARK,
            };
            // A sparkline that begins empty is no failure.
            if let Ok(page) = client
                .history_steps(&row.domain, &row.spec.name, query)
                .await
            {
                for p in page.points {
                    state
                        .recent
                        .push(&key, p.mean.at_ms, p.mean.get(state.spark));
                }
            }
        }
        if let Some(u) = &row.usage {
            state.recent.push(&key, u.at_ms, u.get(state.spark));
        }
    }
    Ok(rows)
}

fn draw(
    out: &mut dyn Write,
    rows: &[FeatureRow],
    state: &State,
    every: Duration,
) -> std::io::Result<()> {
    let screen = Screen::detect();
    let lines = height().unwrap_or(LINES);
    let mut page = Vec::new();
    let by = match state.sort {
        Sort::By(r) => r.as_str(),
        Sort::Name => "name",
    };
    let head = format!(
        "{} features by {by}, every {} s    c m n d f: sort  r: reverse  j k: scroll  q: quit",
        rows.len(),
        every.as_secs_f64()
    );
    writeln!(page, "{}", screen.paint(Style::Dim, &head))?;
    let window = (state.from, lines.saturating_sub(3));
    view::top(
        &mut page,
        rows,
        window,
        (&state.recent, state.spark),
        &screen,
    )?;
    let page = String::from_utf8_lossy(&page);
    write!(out, "\x1b[H")?;
    for line in page.lines().take(lines.saturating_sub(1)) {
        write!(out, "{line}\x1b[K\r\n")?;
    }
    write!(out, "\x1b[J")?;
    out.flush()
}

fn height() -> Option<usize> {
    terminal_size()
        .map(|(rows, _)| rows)
        .filter(|rows| *rows > 3)
}

/// Keys as they are pressed. The thread ends with the process: reading a terminal cannot be
/// cancelled.
fn keys() -> mpsc::Receiver<u8> {
    let (tx, rx) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin();
        let mut byte = [0];
        while let Ok(1) = stdin.read(&mut byte) {
            if tx.blocking_send(byte[0]).is_err() {
                return;
            }
        }
    });
    rx
}

/// The terminal without line editing and echo, on its other page; as it was when dropped.
struct Raw(Termios);

impl Raw {
    fn enter(out: &mut dyn Write) -> std::io::Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.local_flags
            .remove(LocalFlags::ICANON | LocalFlags::ECHO);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)?;
        let this = Self(before);
        write!(out, "\x1b[?1049h\x1b[?25l")?;
        out.flush()?;
        Ok(this)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &self.0);
        let mut out = std::io::stdout();
        let _ = write!(out, "\x1b[?25h\x1b[?1049l");
        let _ = out.flush();
    }
}
