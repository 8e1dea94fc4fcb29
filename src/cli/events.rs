//! `event`: the daemon's signals as they come.

use std::io::{self, Write};

use futures_util::StreamExt;
use serde_json::{Value, json};
use zbus::fdo::DBusProxy;
use zbus::message::{Message, Type};
use zbus::{MatchRule, MessageStream, ObjectPath};

use super::args::{Cli, Format};
use super::client::{Client, Result};
use super::error::CliError;
use super::moves::id_of;
use super::screen::{Screen, Style, plain};
use super::time::{now_ms, utc};
use super::views::{jobs, json_line};
use crate::dbus::{MANAGER, NAME, PATH};

/// A signal as printed.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Kind: `breach`, `decision`, `move`, `move_ended`, `feature`, `instance`, `peer`, `daemon`.
    pub kind: &'static str,
    /// For people.
    pub text: String,
    /// Good, bad or neither.
    pub style: Style,
    /// For programs: an object.
    pub data: Value,
}

/// Reads a signal of the manager; `None` for one of a later version.
pub fn read(member: &str, message: &Message) -> std::result::Result<Option<Event>, zbus::Error> {
    let body = message.body();
    let event = match member {
        "Breach" => {
            let (domain, feature, what, active): (&str, &str, &str, bool) = body.deserialize()?;
            Event {
                kind: "breach",
                text: format!(
                    "{domain}/{feature}: {}{what}",
                    if active { "" } else { "over: " }
                ),
                style: if active { Style::Bad } else { Style::Good },
                data: json!({"domain": domain, "feature": feature, "what": what, "active": active}),
            }
        }
        "Decision" => {
            let (domain, feature, outcome, reason, plan): (&str, &str, &str, &str, &str) =
                body.deserialize()?;
            Event {
                kind: "decision",
                text: format!("{domain}/{feature}: {outcome}: {reason}"),
                style: Style::Plain,
                data: json!({
                    "domain": domain, "feature": feature, "outcome": outcome, "reason": reason,
                    "plan": embedded(plan)
                }),
            }
        }
        "MoveProgress" => {
            let (path, text): (ObjectPath<'_>, &str) = body.deserialize()?;
            let line = serde_json::from_str(text).map(|j| jobs::progress(&j));
            Event {
                kind: "move",
                text: line.unwrap_or_else(|_| id_of(path.as_str())),
                style: Style::Plain,
                data: json!({"id": id_of(path.as_str()), "job": embedded(text)}),
            }
        }
        "MoveEnded" => {
            let (path, result, reason): (ObjectPath<'_>, &str, &str) = body.deserialize()?;
            let id = id_of(path.as_str());
            let why = if reason.is_empty() {
                String::new()
            } else {
                format!(": {reason}")
            };
            Event {
                kind: "move_ended",
                text: format!("{id}: {result}{why}"),
                style: if result == "done" {
                    Style::Good
                } else {
                    Style::Bad
                },
                data: json!({"id": id, "result": result, "reason": reason}),
            }
        }
        "FeatureChanged" => {
            let (domain, feature, what): (&str, &str, &str) = body.deserialize()?;
            Event {
                kind: "feature",
                text: format!("{domain}/{feature}: {what}"),
                style: Style::Plain,
                data: json!({"domain": domain, "feature": feature, "what": what}),
            }
        }
        "InstanceChanged" => {
            let (domain, what): (&str, &str) = body.deserialize()?;
            Event {
                kind: "instance",
                text: format!("{domain}: {what}"),
                style: Style::Plain,
                data: json!({"domain": domain, "what": what}),
            }
        }
        "PeerChanged" => {
            let (host, what): (&str, &str) = body.deserialize()?;
            Event {
                kind: "peer",
                text: format!("{host}: {what}"),
                style: Style::Plain,
                data: json!({"host": host, "what": what}),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(event))
}

/// JSON within JSON, as text should it not be JSON.
fn embedded(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// Writes an event that came at `at_ms`.
pub fn write(
    out: &mut dyn Write,
    event: &Event,
    at_ms: i64,
    format: Format,
    screen: &Screen,
) -> io::Result<()> {
    let time = utc(at_ms, true);
    if format == Format::Json {
        let mut object = json!({"time": time, "at_ms": at_ms, "event": event.kind});
        if let (Some(o), Value::Object(data)) = (object.as_object_mut(), &event.data) {
            o.extend(data.clone());
        }
        json_line(out, &object)?;
    } else {
        let text = screen.paint(event.style, &plain(&event.text));
        writeln!(out, "{time}  {:<10}  {text}", event.kind)?;
    }
    out.flush()
}

/// `drover event`: until Ctrl-C, `count` events, or the timeout.
pub async fn follow(
    cli: &Cli,
    out: &mut dyn Write,
    screen: &Screen,
    client: &Client,
    count: Option<u64>,
) -> Result<()> {
    let bus = |e: zbus::Error| client.error(&e);
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(NAME)
        .path(PATH)
        .interface(MANAGER)
        .build()
        .map_err(bus)?;
    // A burst of progress of several moves must not be lost while a line is written.
    let queue = std::num::NonZeroUsize::new(256);
    let stream = MessageStream::for_match_rule(rule, client.connection(), queue).await;
    let mut signals = stream.map_err(bus)?;
    let dbus = DBusProxy::new(client.connection()).await.map_err(bus)?;
    let owners = dbus
        .receive_name_owner_changed_with_args(&[(0, NAME)])
        .await;
    let mut owners = owners.map_err(bus)?;
    // Fails when the daemon is not there: nothing would ever come.
    client.version().await?;

    let deadline = cli.timeout.map(|t| tokio::time::Instant::now() + t);
    let mut stop = super::interrupts()?;
    let mut seen = 0;
    while count.is_none_or(|c| seen < c) {
        let late = async {
            match deadline {
                Some(d) => tokio::time::sleep_until(d).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            message = signals.next() => match message {
                Some(Ok(m)) => {
                    let header = m.header();
                    let member = header.member().map(|n| n.as_str().to_owned());
                    read(member.as_deref().unwrap_or_default(), &m).map_err(bus)?
                }
                Some(Err(e)) => return Err(client.error(&e)),
                None => return Err(lost()),
            },
            change = owners.next() => match change {
                Some(c) => Some(daemon(c.args().map_err(bus)?.new_owner().is_some())),
                None => return Err(lost()),
            },
            () = late => {
                return match count {
                    None => Ok(()),
                    Some(c) => Err(CliError::Timeout(format!(
                        "{seen} of {c} events came within the --timeout"
                    ))),
                };
            }
            _ = stop.recv() => return Ok(()),
        };
        if let Some(event) = event {
            write(out, &event, now_ms(), cli.format, screen)?;
            seen += 1;
        }
    }
    Ok(())
}

fn lost() -> CliError {
    CliError::Failed("the bus closed the connection; see \"systemctl status dbus\"".to_owned())
}

fn daemon(up: bool) -> Event {
    let what = if up { "started" } else { "stopped" };
    Event {
        kind: "daemon",
        text: format!("droverd {what}"),
        style: if up { Style::Good } else { Style::Bad },
        data: json!({"what": what}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal<B: serde::Serialize + zbus::Type>(member: &str, body: &B) -> Message {
        Message::signal(PATH, MANAGER, member).build(body).unwrap()
    }

    fn lines(e: &Event) -> (String, Value) {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        write(
            &mut a,
            e,
            951_827_405_007,
            Format::Table,
            &Screen::default(),
        )
        .unwrap();
        write(&mut b, e, 951_827_405_007, Format::Json, &Screen::default()).unwrap();
        (
            String::from_utf8(a).unwrap(),
            serde_json::from_slice(&b).unwrap(),
        )
    }

    #[test]
    fn breach() {
        let m = signal("Breach", &("web", "cache", "cpu 93 %\x1b[2J", true));
        let e = read("Breach", &m).unwrap().unwrap();
        let (text, value) = lines(&e);
        assert_eq!(
            text,
            "2000-02-29T12:30:05.007Z  breach      web/cache: cpu 93 %?[2J\n"
        );
        assert_eq!(value["event"], "breach");
        assert_eq!(value["active"], true);
        assert_eq!(value["at_ms"], 951_827_405_007_i64);
    }

    #[test]
    fn move_ended() {
        let path = ObjectPath::try_from("/org/drover1/move/aa_bb").unwrap();
        let m = signal("MoveEnded", &(path, "failed", "no room"));
        let (text, value) = lines(&read("MoveEnded", &m).unwrap().unwrap());
        assert!(text.ends_with("aa-bb: failed: no room\n"), "{text}");
        assert_eq!(value["id"], "aa-bb");
    }

    #[test]
    fn unknown_signals_are_skipped_and_wrong_ones_are_errors() {
        let m = signal("Later", &("x",));
        assert_eq!(read("Later", &m).unwrap(), None);
        assert!(read("Breach", &m).is_err());
    }
}
