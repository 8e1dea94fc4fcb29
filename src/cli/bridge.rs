//! `drover bridge`: standard input and output as a connection to this host's system bus. The far
//! end of `--connect`, run by ssh.
//!
//! The bus authenticates this process, hence the user that ssh logged in; the near end sends D-Bus
//! messages only.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::client::Result;
use super::error::CliError;

/// What the bridge says before the first message. What login scripts print comes before it.
pub const GREETING: &str = "drover-bridge 1";
/// Where the system bus is, unless `DBUS_SYSTEM_BUS_ADDRESS` says otherwise.
const BUS: &str = "/run/dbus/system_bus_socket";
/// Longest wait for the bus to let this process in.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The socket's path in a D-Bus address.
fn socket_of(address: &str) -> Option<&str> {
    let first = address.split(';').next()?;
    let list = first.strip_prefix("unix:")?;
    list.split(',').find_map(|p| p.strip_prefix("path="))
}

/// Authenticates as the user of this process (D-Bus specification, "EXTERNAL").
fn authenticate(bus: &UnixStream) -> io::Result<()> {
    let uid = nix::unistd::geteuid().to_string();
    // Digits in hexadecimal: 0 is 30.
    let uid: String = uid.chars().flat_map(|c| ['3', c]).collect();
    bus.set_read_timeout(Some(HANDSHAKE))?;
    let mut to = bus;
    to.write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())?;
    let mut line = String::new();
    // The bus says nothing after this line before it is asked, so nothing is lost in the buffer.
    BufReader::new(bus.take(4096)).read_line(&mut line)?;
    if !line.starts_with("OK ") {
        let why = format!("the bus does not let this user in: {}", line.trim());
        return Err(io::Error::other(why));
    }
    to.write_all(b"BEGIN\r\n")?;
    bus.set_read_timeout(None)
}

fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut part = vec![0; 64 << 10];
    loop {
        let n = match from.read(&mut part) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        to.write_all(&part[..n])?;
        to.flush()?;
    }
}

/// Runs until either end closes.
pub fn run() -> Result<()> {
    let address = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
    let path = socket_of(&address).unwrap_or(BUS).to_owned();
    let failed = |e: io::Error| {
        CliError::Failed(format!(
            "cannot connect to the system bus at {path}: {e}; see \"systemctl status dbus\""
        ))
    };
    let bus = UnixStream::connect(&path).map_err(failed)?;
    authenticate(&bus).map_err(failed)?;
    let mut out = io::stdout();
    out.write_all(format!("{GREETING}\n").as_bytes())?;
    out.flush()?;
    let outward = bus.try_clone().map_err(failed)?;
    std::thread::spawn(move || {
        let ended = copy(io::stdin().lock(), &outward);
        // The bus closes its side too, which ends the program.
        let closed = outward.shutdown(Shutdown::Write);
        tracing::trace!(?ended, ?closed, "nothing more to send");
    });
    Ok(copy(&bus, out)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(socket_of("unix:path=/run/x,guid=1"), Some("/run/x"));
        assert_eq!(
            socket_of("unix:guid=1,path=/run/x;tcp:host=y"),
            Some("/run/x")
        );
        assert_eq!(socket_of(""), None);
        assert_eq!(socket_of("tcp:host=y"), None);
    }

    #[test]
    fn refused_by_the_bus() {
        let (here, mut there) = UnixStream::pair().unwrap();
        there.write_all(b"REJECTED EXTERNAL\r\n").unwrap();
        let e = authenticate(&here).unwrap_err().to_string();
        assert!(e.contains("REJECTED EXTERNAL"), "{e}");
        let mut sent = [0; 15];
        there.read_exact(&mut sent).unwrap();
        assert_eq!(&sent, b"\0AUTH EXTERNAL ");
    }
}
