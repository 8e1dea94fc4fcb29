//! `drover generate`: man pages and completions from the grammar, for packages. Hidden from the
//! help, since users get the results.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::{Cli, DaemonArgs};
use super::error::CliError;

/// Where the pages come from.
const SOURCE: &str = concat!("Drover ", env!("CARGO_PKG_VERSION"));
/// No date, so that the same source gives the same pages. An empty one would be left out, and
/// what follows it taken for the date.
const NO_DATE: &str = " ";

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// `man1/drover.1`, one page per command, `man8/droverd.8`
    Man,
    /// For bash, zsh and fish, each in a directory named so
    Completions,
}

/// Writes the files below `dir`, which is made if need be.
pub fn generate(what: What, dir: &Path) -> Result<(), CliError> {
    let done = match what {
        What::Man => man(dir),
        What::Completions => completions(dir),
    };
    done.map_err(|e| CliError::Failed(format!("cannot write into {}: {e}", dir.display())))
}

fn man(dir: &Path) -> io::Result<()> {
    let (one, eight) = (dir.join("man1"), dir.join("man8"));
    fs::create_dir_all(&one)?;
    fs::create_dir_all(&eight)?;
    let mut root = Cli::command().display_name("drover");
    root.build();
    pages(&root, "drover", &one)?;
    let daemon = DaemonArgs::command();
    let page = Man::new(daemon)
        .section("8")
        .date(NO_DATE)
        .source(SOURCE)
        .manual("System administration");
    write(
        &eight.join("droverd.8"),
        &page,
        &[
            "drover(1)",
            "drover.toml(5)",
            "drover-feature(5)",
            "drover-dbus(7)",
        ],
    )
}

/// A page for `command`, called `name`, and for those below it.
fn pages(command: &Command, name: &str, dir: &Path) -> io::Result<()> {
    let shown = command.get_subcommands().filter(|c| !c.is_hide_set());
    let mut also = if name == "drover" {
        vec![
            "droverd(8)".to_owned(),
            "drover.toml(5)".to_owned(),
            "drover-feature(5)".to_owned(),
            "drover-dbus(7)".to_owned(),
        ]
    } else {
        vec!["drover(1)".to_owned()]
    };
    for c in shown {
        let below = format!("{name}-{}", c.get_name());
        pages(c, &below, dir)?;
        also.push(format!("{below}(1)"));
    }
    let page = Man::new(command.clone())
        .section("1")
        .date(NO_DATE)
        .source(SOURCE)
        .manual("User commands");
    let also: Vec<&str> = also.iter().map(String::as_str).collect();
    write(&dir.join(format!("{name}.1")), &page, &also)
}

fn write(path: &Path, page: &Man, also: &[&str]) -> io::Result<()> {
    let mut out = Vec::new();
    page.render(&mut out)?;
    let list: Vec<String> = also
        .iter()
        .filter_map(|p| p.strip_suffix(')')?.split_once('('))
        .map(|(name, section)| format!(".BR {} ({section})", name.replace('-', "\\-")))
        .collect();
    out.extend_from_slice(format!(".SH \"SEE ALSO\"\n{}\n", list.join(",\n")).as_bytes());
    fs::write(path, out)
}

fn completions(dir: &Path) -> io::Result<()> {
    for (shell, name, file) in [
        (Shell::Bash, "bash", "drover"),
        (Shell::Zsh, "zsh", "_drover"),
        (Shell::Fish, "fish", "drover.fish"),
    ] {
        let dir = dir.join(name);
        fs::create_dir_all(&dir)?;
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "drover", &mut text);
        fs::write(dir.join(file), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        generate(What::Man, dir.path()).unwrap();
        let page = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        for name in ["doctor", "migrate", "guest-install"] {
            let text = page(&format!("man1/drover-{name}.1"));
            assert!(
                text.starts_with(".ie \\n(.g") || text.contains(".TH "),
                "{text}"
            );
            assert!(text.contains(&name.replace('-', "\\-")), "{text}");
        }
        assert!(!dir.path().join("man1/drover-generate.1").exists());
        assert!(!page("man1/drover.1").contains("generate"));
        assert!(page("man1/drover.1").contains("Exit codes"));
        assert!(page("man8/droverd.8").contains("/etc/drover/drover.toml"));
    }

    /// Every command that is shown, with its parents: `guest-install`, with its options.
    fn commands(of: &Command, above: &str) -> Vec<(String, Vec<String>)> {
        let mut found = Vec::new();
        for c in of.get_subcommands().filter(|c| !c.is_hide_set()) {
            let name = format!("{above}{}", c.get_name());
            let options = c.get_arguments().filter(|a| !a.is_hide_set());
            let options = options.filter_map(|a| a.get_long()).map(str::to_owned);
            let below = commands(c, &format!("{name}-"));
            found.push((name, options.collect()));
            found.extend(below);
        }
        found
    }

    #[test]
    fn every_command_and_option_has_a_page_and_completions() {
        let dir = tempfile::tempdir().unwrap();
        generate(What::Man, dir.path()).unwrap();
        generate(What::Completions, dir.path()).unwrap();
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        let shells = ["bash/drover", "zsh/_drover", "fish/drover.fish"].map(|f| (f, read(f)));
        let index = read("man1/drover.1").replace('\\', "");
        let all = commands(&Cli::command(), "");
        assert!(all.len() > 30, "{all:?}");
        for (name, options) in &all {
            let page = dir.path().join(format!("man1/drover-{name}.1"));
            let page = fs::read_to_string(page).unwrap_or_else(|e| panic!("{name}: {e}"));
            let page = page.replace('\\', "");
            let last = name.rsplit('-').next().unwrap();
            for option in options {
                assert!(page.contains(&format!("--{option}")), "{name} --{option}");
            }
            if !name.contains('-') {
                assert!(index.contains(&format!("drover-{name}")), "{name}");
            }
            for (file, text) in &shells {
                assert!(text.contains(last), "{file}: {name}");
                for option in options {
                    assert!(text.contains(option.as_str()), "{file}: {name} --{option}");
                }
            }
        }
        // No page is left of a command that is no more.
        let pages = fs::read_dir(dir.path().join("man1")).unwrap();
        for page in pages.map(|p| p.unwrap().file_name().into_string().unwrap()) {
            let name = page.trim_end_matches(".1").trim_start_matches("drover");
            let name = name.trim_start_matches('-');
            assert!(
                name.is_empty() || all.iter().any(|(n, _)| n == name),
                "{page}"
            );
        }
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let e = generate(What::Man, Path::new("/dev/null/x")).unwrap_err();
        assert_eq!(e.code(), 1);
        assert!(e.to_string().contains("/dev/null/x"), "{e}");
    }

    #[test]
    fn the_page_of_the_bus_names_every_member_of_the_manager() {
        let page = include_str!("../../packaging/man/drover-dbus.7").replace('\\', "");
        let contract = include_str!("../../packaging/dbus/org.drover1.xml");
        let names = |start: &str| {
            let tags = contract.split(start).skip(1);
            tags.map(|t| t.split('"').next().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        for interface in names("<interface name=\"") {
            assert!(page.contains(&interface), "{interface}");
        }
        for member in [names("<method name=\""), names("<signal name=\"")].concat() {
            let mut words = page.split(|c: char| !c.is_alphanumeric());
            assert!(words.any(|w| w == member), "{member}");
        }
        let policy = include_str!("../../packaging/polkit/org.drover1.policy");
        for action in policy.split("<action id=\"").skip(1) {
            let action = action.split('"').next().unwrap();
            assert!(page.contains(action), "{action}");
        }
    }

    /// What is between `.EX` and `.EE`.
    fn example(page: &str) -> &str {
        let (_, rest) = page.split_once("\n.EX\n").unwrap();
        rest.split_once("\n.EE\n").unwrap().0
    }

    #[test]
    fn hand_written_pages_name_every_key() {
        let page = include_str!("../../packaging/man/drover.toml.5");
        let example = example(page);
        Config::parse(example, Path::new("drover.toml(5)")).unwrap();
        // A refused key is answered with those that there are.
        for (section, required) in [
            ("", "host.name = 'a'\n"),
            ("host.", "host.name = 'a'\n"),
            ("libvirt.", "host.name = 'a'\n"),
            ("meter.", "host.name = 'a'\n"),
            ("history.", "host.name = 'a'\n"),
            ("model.", "host.name = 'a'\n"),
            ("decision.", "host.name = 'a'\n"),
            ("decision.weights.", "host.name = 'a'\n"),
            ("forecast.", "host.name = 'a'\n"),
            ("moves.", "host.name = 'a'\n"),
            ("features.", "host.name = 'a'\n"),
            ("metrics.", "host.name = 'a'\n"),
            ("peer.", "host.name = 'a'\n"),
        ] {
            let text = format!("{section}no_such_key = 1\n{required}");
            let e = Config::parse(&text, Path::new("x"))
                .unwrap_err()
                .to_string();
            let (_, known) = e.split_once("expected ").unwrap();
            let known: Vec<_> = known.split('`').skip(1).step_by(2).collect();
            assert!(!known.is_empty(), "{e}");
            for key in known {
                let lines = page
                    .lines()
                    .filter(|l| l.starts_with(".B") || l.starts_with(".S"));
                let mut words =
                    lines.flat_map(|l| l.split(|c: char| !c.is_alphanumeric() && c != '_'));
                assert!(
                    words.any(|w| w == key),
                    "{section}{key} is not in drover.toml(5)"
                );
            }
        }
        let page = include_str!("../../packaging/man/drover-feature.5");
        let (_, rest) = page.split_once("\n.EX\n").unwrap();
        let example = rest.split_once("\n.EE\n").unwrap().0;
        let spec = super::super::spec::parse(example, "drover-feature(5)").unwrap();
        let mut keys = serde_json::to_value(&spec).unwrap();
        let workload = keys["workload"].take();
        for (key, _) in keys
            .as_object()
            .unwrap()
            .iter()
            .chain(workload.as_object().unwrap())
        {
            assert!(
                page.contains(&format!(".B {key}\n")) || key == "kind",
                "{key}"
            );
        }
    }
}
