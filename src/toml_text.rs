//! TOML errors for people: the line, the key, and what was probably meant (edge).

/// Longest distance at which a known key is suggested, per length of the unknown one.
fn near(unknown: &str) -> usize {
    1 + unknown.chars().count() / 4
}

/// What a typed reader says about `text`, with the line and, for an unknown key, the known one
/// that is most like it. Readers of parsed values know no places: then the key is looked for.
pub fn explain(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim();
    let unknown =
        quoted(message, "unknown field `").or_else(|| quoted(message, "unknown variant `"));
    let line = error
        .span()
        .map(|s| line_of(text, s.start))
        .or_else(|| unknown.as_deref().and_then(|key| line_of_key(text, key)));
    let mut out = match line {
        Some(n) => format!("line {n}: {message}"),
        None => message.to_owned(),
    };
    if let Some(unknown) = unknown
        && let Some(meant) = suggestion(&unknown, known(message))
    {
        out = format!("{out}; did you mean `{meant}`?");
    }
    out
}

/// The known word that `unknown` was probably meant to be.
pub fn suggestion<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(unknown, k), k))
        .filter(|(d, _)| *d <= near(unknown))
        .min()
        .map(|(_, k)| k)
}

fn quoted(message: &str, before: &str) -> Option<String> {
    let (_, rest) = message.split_once(before)?;
    Some(rest.split_once('`')?.0.to_owned())
}

/// The words in quotes after "expected".
fn known(message: &str) -> impl Iterator<Item = &str> {
    let list = message.split_once("expected ").map_or("", |(_, l)| l);
    list.split('`').skip(1).step_by(2)
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

/// The first line that gives `key` a value or opens a table of this name.
fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let gives = |line: &str| {
        line.match_indices(key).any(|(at, _)| {
            let word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
            let (before, after) = (&line[..at], &line[at + key.len()..]);
            let after = after.trim_start_matches(['"', '\'']).trim_start();
            !before.ends_with(word) && after.starts_with(['=', ']', '.', ':'])
        })
    };
    text.lines().position(gives).map(|n| n + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct T {
        #[allow(dead_code, reason = "read by serde only")]
        interval_s: Option<f64>,
        #[allow(dead_code, reason = "read by serde only")]
        reserve: Option<f64>,
    }

    fn of(text: &str) -> String {
        explain(text, &toml::from_str::<T>(text).unwrap_err())
    }

    #[test]
    fn line_and_suggestion() {
        let e = of("\n# intervall_s = 1\nintervall_s = 2\n");
        assert!(e.starts_with("line 3: unknown field `intervall_s`"), "{e}");
        assert!(e.ends_with("did you mean `interval_s`?"), "{e}");
        let e = of("colour = 2\n");
        assert!(
            e.starts_with("line 1: ") && !e.contains("did you mean"),
            "{e}"
        );
        let e = of("reserve = 'x'\n");
        assert!(e.starts_with("line 1: invalid type"), "{e}");
        let e = of("reserve = \n");
        assert!(e.starts_with("line 1: "), "{e}");
    }

    #[test]
    fn values_have_no_places() {
        let text = "reserve = 1\n[interval_s]\nresrve.x = 1\n";
        let value: toml::Value = toml::from_str("resrve = 1").unwrap();
        let e = value.try_into::<T>().unwrap_err();
        let e = explain(text, &e);
        assert!(e.starts_with("line 3: ") && e.contains("`reserve`?"), "{e}");
    }
}
