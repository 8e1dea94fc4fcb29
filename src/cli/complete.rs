//! What can follow in a line of the interactive shell: commands and options from the grammar,
//! domains, features, hosts and moves from droverd. Pure.

use std::collections::BTreeSet;

use clap::{Arg, Command};

/// What droverd knows, for completion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Domains of this host.
    pub domains: BTreeSet<String>,
    /// Domain and feature.
    pub features: BTreeSet<(String, String)>,
    /// Hosts and their guests, `HOST` and `HOST/DOMAIN`.
    pub places: BTreeSet<String>,
    /// Identifiers of moves.
    pub moves: BTreeSet<String>,
}

/// Words that the shell itself understands.
pub const OWN: [&str; 3] = ["exit", "help", "quit"];

/// Where the word under the cursor begins, and what it can become.
pub fn complete(grammar: &Command, known: &Known, line: &str, at: usize) -> (usize, Vec<String>) {
    let before = line.get(..at).unwrap_or(line);
    let start = before.rfind(char::is_whitespace).map_or(0, |i| {
        i + before[i..].chars().next().map_or(1, char::len_utf8)
    });
    let (head, word) = before.split_at(start);
    let words: Vec<&str> = head.split_whitespace().collect();
    let mut found = candidates(grammar, known, &words, word);
    found.retain(|c| c.starts_with(word));
    found.sort();
    found.dedup();
    (start, found)
}

fn candidates(grammar: &Command, known: &Known, words: &[&str], word: &str) -> Vec<String> {
    let mut command = grammar;
    let mut given: Vec<&str> = Vec::new();
    let mut option: Option<&Arg> = None;
    let helping = words.first() == Some(&"help");
    for w in words.iter().skip(usize::from(helping)) {
        if option.take().is_some() {
            continue;
        }
        if let Some(name) = w.strip_prefix("--") {
            option = find(grammar, command, name).filter(|a| a.get_action().takes_values());
        } else if let Some(sub) = command.find_subcommand(w) {
            command = sub;
            given.clear();
        } else {
            given.push(w);
        }
    }
    if let Some(arg) = option {
        return values(arg, known, &given);
    }
    if word.starts_with('-') {
        return options(grammar, command);
    }
    let mut out: Vec<String> = command
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .map(|c| c.get_name().to_owned())
        .collect();
    if words.is_empty() {
        out.extend(OWN.map(str::to_owned));
    }
    let arg = command.get_positionals().nth(given.len()).or_else(|| {
        let last = command.get_positionals().last();
        last.filter(|a| a.get_num_args().is_some_and(|n| n.max_values() > 1))
    });
    if let Some(arg) = arg.filter(|_| !helping) {
        out.extend(values(arg, known, &given));
    }
    out
}

fn find<'a>(grammar: &'a Command, command: &'a Command, name: &str) -> Option<&'a Arg> {
    // With the value in the same word there is nothing to wait for.
    if name.contains('=') {
        return None;
    }
    let mut all = command.get_arguments().chain(grammar.get_arguments());
    all.find(|a| a.get_long() == Some(name))
}

fn options(grammar: &Command, command: &Command) -> Vec<String> {
    let global = grammar.get_arguments().filter(|a| a.is_global_set());
    command
        .get_arguments()
        .chain(global)
        .filter(|a| !a.is_hide_set())
        .filter_map(|a| a.get_long())
        .map(|l| format!("--{l}"))
        .chain(["--help".to_owned()])
        .collect()
}

fn values(arg: &Arg, known: &Known, given: &[&str]) -> Vec<String> {
    match arg.get_id().as_str() {
        "domain" => known.domains.iter().cloned().collect(),
        "which" if given.is_empty() => known.moves.iter().chain(&known.domains).cloned().collect(),
        "feature" | "which" => features(known, given.last().copied()),
        "to" => known.places.iter().cloned().collect(),
        "resource" => crate::feature::Resource::ALL
            .map(|r| r.as_str().to_owned())
            .to_vec(),
        _ => arg
            .get_possible_values()
            .iter()
            .map(|v| v.get_name().to_owned())
            .collect(),
    }
}

fn features(known: &Known, domain: Option<&str>) -> Vec<String> {
    let fit = known.features.iter().filter(|(d, _)| domain == Some(d));
    fit.map(|(_, f)| f.clone()).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::args::Cli;
    use super::*;

    fn at_end(line: &str) -> (usize, Vec<String>) {
        let mut grammar = Cli::command();
        grammar.build();
        let set = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        let known = Known {
            domains: set(&["web", "db"]),
            features: [("web", "cache"), ("web", "mail"), ("db", "sql")]
                .map(|(d, f)| (d.to_owned(), f.to_owned()))
                .into(),
            places: set(&["h2", "h2/web2"]),
            moves: set(&["aa11"]),
        };
        complete(&grammar, &known, line, line.len())
    }

    #[test]
    fn words() {
        assert_eq!(at_end("mig"), (0, vec!["migrate".to_owned()]));
        let (_, all) = at_end("");
        for w in ["list", "quit", "help", "jobabort"] {
            assert!(all.iter().any(|a| a == w), "{w}: {all:?}");
        }
        assert!(
            !all.iter().any(|a| a == "generate" || a == "bridge"),
            "{all:?}"
        );
        for (line, want) in [
            ("enable ", &["db", "web"][..]),
            ("enable web ", &["cache", "mail"]),
            ("enable web c", &["cache"]),
            ("enable web cache ", &[]),
            ("migrate web cache --to ", &["h2", "h2/web2"]),
            ("migrate --to h2 web m", &["mail"]),
            ("guest ", &["install", "remove", "status"]),
            ("guest install w", &["web"]),
            ("jobinfo ", &["aa11", "db", "web"]),
            ("jobinfo db ", &["sql"]),
            ("list --format ", &["csv", "json", "table"]),
            ("history web cache --resource m", &["memory"]),
            ("help mig", &["migrate"]),
            ("config ", &["check"]),
        ] {
            assert_eq!(at_end(line).1, want, "{line}");
        }
        let (start, found) = at_end("migrate web cache --no");
        assert_eq!((start, found), (18, vec!["--no-wait".to_owned()]));
        assert!(at_end("list --f").1.contains(&"--format".to_owned()));
        // Elsewhere than at the end, and with wide characters.
        let grammar = Cli::command();
        assert_eq!(
            complete(&grammar, &Known::default(), "mi x", 2).1,
            ["migrate"]
        );
        assert_eq!(complete(&grammar, &Known::default(), "ü\u{2003}li", 6).0, 5);
    }
}
