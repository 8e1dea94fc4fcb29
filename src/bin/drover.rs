//! `drover`: the command line of Drover; see `drover --help`.

fn main() -> std::process::ExitCode {
    drover::cli::main()
}
