//! The address of a master's event bus.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::files::socket_file::fits;

/// The place where the bus is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub(crate) enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

impl Default for Address {
    fn default() -> Self {
        Address::Unix("/var/run/salt/master/master_event_pub.ipc".into())
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(host_port) = text.strip_prefix("tcp://") {
            let port = host_port.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            return match port {
                Some(_) => Ok(Address::Tcp(host_port.to_owned())),
                None => Err(format!("`{text}` has no port; write tcp://HOST:PORT")),
            };
        }
        let path = text.strip_prefix("unix:").unwrap_or(text);
        match path.split_once("://") {
            Some((scheme, _)) => Err(format!(
                "`{scheme}://` is no address of a bus: write a path, unix:PATH or tcp://HOST:PORT"
            )),
            None if path.is_empty() => Err("the address is empty".to_owned()),
            None => {
                fits(Path::new(path)).map_err(|error| error.to_string())?;
                Ok(Address::Unix(path.into()))
            }
        }
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Tcp(host_port) => write!(f, "tcp://{host_port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::source::bus_address::*;

    #[test]
    fn addresses() {
        for (text, address) in [
            ("/run/salt/x.ipc", Address::Unix("/run/salt/x.ipc".into())),
            ("unix:/run/salt/x.ipc", Address::Unix("/run/salt/x.ipc".into())),
            ("tcp://127.0.0.1:4512", Address::Tcp("127.0.0.1:4512".into())),
            ("tcp://[::1]:4512", Address::Tcp("[::1]:4512".into())),
        ] {
            assert_eq!(text.parse(), Ok(address));
        }
        for text in ["", "tcp://localhost", "http://localhost:80", "unix:"] {
            text.parse::<Address>().unwrap_err();
        }
    }
}
