//! The helper inside a guest: `drover-guest daemon` serves the host's ports, `drover-guest run`
//! is the main process of a managed feature's unit.

use std::process::ExitCode;
use std::sync::Arc;

use drover::feature::FeatureName;
use drover::helper::moves::Moves;
use drover::helper::{daemon, features, gate, log, run, unit};
use drover::wire::guest::valid_move_id;

const USAGE: &str = "usage: drover-guest daemon
       drover-guest run FEATURE [--restore MOVE]
       drover-guest cleanup FEATURE
       drover-guest --version";

fn main() -> ExitCode {
    log::install();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match dispatch(&args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("drover-guest: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[&str]) -> anyhow::Result<ExitCode> {
    match args {
        ["daemon"] => {
            daemon::run(|bulk| {
                let moves = Moves::new(Arc::new(move |m| bulk.send(m)));
                moves.prepare();
                Arc::new(moves)
            })?;
            Ok(ExitCode::SUCCESS)
        }
        ["run", name] => Ok(status(run::run(&FeatureName::new(name)?, None)?)),
        ["run", name, "--restore", id] => {
            anyhow::ensure!(valid_move_id(id), "'{id}' is not a move's identifier");
            let restore: run::Restore = &|name| {
                let spec = features::get(name).map_err(|e| e.to_string())?;
                gate::restore(name, &spec, id).map_err(|e| e.to_string())
            };
            Ok(status(run::run(&FeatureName::new(name)?, Some(restore))?))
        }
        ["cleanup", name] => {
            let name = FeatureName::new(name)?;
            if let Ok(result) = std::env::var("SERVICE_RESULT") {
                run::after_end(&name, &result);
            }
            unit::cleanup(&name)?;
            Ok(ExitCode::SUCCESS)
        }
        ["--version"] => {
            println!("drover-guest {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}

fn status(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
