//! Access to the source: the clients that may connect, and the authority of their words.
//!
//! On a path the kernel says who has connected; over TCP a client shows a token. A *master*'s word
//! on a job is believed, because it has checked from which minion a return comes. Any other
//! client's word is worth no more than the bus, onto which every minion fires anything.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::User;
use rustix::fs::OFlags;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::event::Authority;
use crate::units::is_same_secret;

/// The number that the kernel gives a user whom this process's namespace does not know.
const UNMAPPED: u32 = 65534;

/// The length of a token, in bytes.
const TOKEN: std::ops::RangeInclusive<usize> = 16..=4096;

/// A user, by number or name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "NumberOrName")]
#[schemars(with = "NumberOrName")]
pub(super) struct UserId(u32);

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum NumberOrName {
    Number(u32),
    Name(String),
}

impl TryFrom<NumberOrName> for UserId {
    type Error = String;

    fn try_from(written: NumberOrName) -> Result<Self, String> {
        let number = match written {
            NumberOrName::Number(number) => number,
            NumberOrName::Name(name) => match (name.parse(), User::from_name(&name)) {
                (Ok(number), _) => number,
                (_, Ok(Some(user))) => user.uid.as_raw(),
                (_, Ok(None)) => return Err(format!("there is no user `{name}` on this machine")),
                (_, Err(error)) => return Err(format!("looking for the user `{name}`: {error}")),
            },
        };
        if number == UNMAPPED {
            return Err(format!(
                "{UNMAPPED} stands for every user of a container that is not mapped, so it cannot \
                 be allowed; {REMEDY}"
            ));
        }
        Ok(UserId(number))
    }
}

/// Advice on how to let an unmapped container in.
const REMEDY: &str =
    "share user ids with the container, or bind tcp://127.0.0.1:PORT with `token_file`";

/// The peer of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// A user of this machine, on a path.
    User(u32),
    /// Somebody over TCP, who has to show the token first.
    Token,
}

/// The rules that decide over clients.
#[derive(Debug)]
pub(super) struct AccessRules {
    pub(super) allow: Option<Vec<UserId>>,
    pub(super) masters: Option<Vec<UserId>>,
    /// The sockets of the buses that this daemon reads.
    pub(super) buses: Vec<PathBuf>,
    /// The owners of these sockets as they were last seen. A bus that is away for a moment keeps
    /// its master.
    pub(super) bus_owners: RefCell<BTreeMap<PathBuf, u32>>,
    /// The owner of the socket's file.
    pub(super) owner: Cell<u32>,
    pub(super) token: Option<Vec<u8>>,
}

impl AccessRules {
    /// Lets a client in, or returns the reason why not.
    pub(super) fn admit(&self, peer: Peer) -> Result<(), String> {
        let Peer::User(user) = peer else { return Ok(()) };
        if user == UNMAPPED {
            return Err(format!(
                "user {UNMAPPED} is refused: it stands for every user of a container that is not \
                 mapped; {REMEDY}"
            ));
        }
        let is_in = |users: &[UserId]| users.contains(&UserId(user));
        let is_allowed = match &self.allow {
            Some(allow) => is_in(allow),
            None => [0, rustix::process::geteuid().as_raw(), self.owner.get()].contains(&user),
        };
        if is_allowed || self.authority(peer) == Some(Authority::Master) {
            return Ok(());
        }
        Err(format!("user {user} is refused: it is not in `allow` of the source, nor in `masters`"))
    }

    /// Looks who owns the sockets of the buses.
    pub(super) fn look_at_buses(&self) {
        let mut owners = self.bus_owners.borrow_mut();
        for bus in &self.buses {
            if let Ok(metadata) = bus.metadata() {
                owners.insert(bus.clone(), metadata.uid());
            }
        }
    }

    /// The authority of this client's word. `None` if it is not known: no socket of a bus was ever
    /// there to name an owner.
    pub(super) fn authority(&self, peer: Peer) -> Option<Authority> {
        let is_master = match (peer, &self.masters) {
            (Peer::Token, _) => true,
            (Peer::User(user), Some(masters)) => masters.contains(&UserId(user)),
            (Peer::User(user), None) if self.buses.is_empty() => user == self.owner.get(),
            (Peer::User(user), None) => {
                self.look_at_buses();
                let owners = self.bus_owners.borrow();
                if owners.is_empty() {
                    return None;
                }
                owners.values().any(|owner| *owner == user)
            }
        };
        Some(if is_master { Authority::Master } else { Authority::Bus })
    }

    /// Compares with the token.
    pub(super) fn is_token(&self, shown: &[u8]) -> bool {
        self.token.as_ref().is_some_and(|token| is_same_secret(shown, token))
    }
}

/// Reads a token, from a regular file that is not open to everybody.
pub(super) fn read_token(path: &Path) -> io::Result<Vec<u8>> {
    let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    // A named pipe must not block this.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return refuse("it is no regular file".to_owned());
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o007 != 0 {
        return refuse(format!("its mode is {mode:04o}, so everybody may read it; chmod o= FILE"));
    }
    let mut text = Vec::new();
    file.take(*TOKEN.end() as u64 + 2).read_to_end(&mut text)?;
    let token = text.trim_ascii();
    if TOKEN.contains(&token.len()) {
        return Ok(token.to_vec());
    }
    let (least, most) = TOKEN.into_inner();
    refuse(format!(
        "a token has {least} to {most} bytes; make one with: (umask 077; openssl rand -hex 32 > FILE)"
    ))
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};

    use super::*;

    fn access() -> AccessRules {
        AccessRules {
            allow: None,
            masters: None,
            buses: vec![],
            bus_owners: RefCell::default(),
            owner: Cell::new(70),
            token: None,
        }
    }

    #[test]
    fn by_default_root_the_daemon_and_the_owner_come_in_and_the_owner_is_master() {
        let access = access();
        for user in [0, rustix::process::geteuid().as_raw(), 70] {
            access.admit(Peer::User(user)).unwrap();
        }
        let refused = access.admit(Peer::User(71)).unwrap_err();
        assert!(refused.contains("user 71 is refused"), "{refused}");
        assert_eq!(access.authority(Peer::User(70)), Some(Authority::Master));
        assert_eq!(access.authority(Peer::User(0)), Some(Authority::Bus));
        assert_eq!(access.authority(Peer::Token), Some(Authority::Master));
    }

    #[test]
    fn the_owner_of_the_bus_is_master_where_there_is_one() {
        let bus = tempfile::NamedTempFile::new().unwrap();
        let owner = bus.as_file().metadata().unwrap().uid();
        let access = AccessRules { buses: vec![bus.path().to_owned()], ..access() };
        assert_eq!(access.authority(Peer::User(owner)), Some(Authority::Master));
        assert_eq!(access.authority(Peer::User(owner + 1)), Some(Authority::Bus));
        // While it is away.
        drop(bus);
        assert_eq!(access.authority(Peer::User(owner)), Some(Authority::Master));
        assert_eq!(access.authority(Peer::User(owner + 1)), Some(Authority::Bus));
        let access = AccessRules {
            buses: vec!["/no/such/bus".into()],
            bus_owners: RefCell::default(),
            ..access
        };
        assert_eq!(access.authority(Peer::User(owner)), None);
    }

    #[test]
    fn a_master_comes_in_and_an_unmapped_user_never() {
        let written = |user: u32| UserId::try_from(NumberOrName::Number(user));
        let (one, two) = (written(81).unwrap(), written(82).unwrap());
        let access = AccessRules { allow: Some(vec![one]), masters: Some(vec![two]), ..access() };
        access.admit(Peer::User(81)).unwrap();
        access.admit(Peer::User(82)).unwrap();
        access.admit(Peer::User(0)).unwrap_err();
        let refused = access.admit(Peer::User(UNMAPPED)).unwrap_err();
        assert!(refused.contains("token_file"), "{refused}");
        assert!(written(UNMAPPED).unwrap_err().contains("token_file"));
        let named = |name: &str| UserId::try_from(NumberOrName::Name(name.to_owned()));
        assert_eq!(named("root"), Ok(UserId(0)));
        assert!(named("no-such-user").unwrap_err().contains("no user"));
    }

    #[test]
    fn a_token_is_whole_or_none() {
        let access = AccessRules { token: Some(b"0123456789abcdef".to_vec()), ..access() };
        assert!(access.is_token(b"0123456789abcdef"));
        for wrong in [&b""[..], b"0123456789abcde", b"0123456789abcdeg", b"0123456789abcdef0"] {
            assert!(!access.is_token(wrong));
        }
    }

    #[test]
    fn a_token_file_is_regular_closed_and_long_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let says = |words: &str| {
            let error = read_token(&path).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        write(&path, "0123456789abcdef\n").unwrap();
        set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        says("everybody");
        set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert_eq!(read_token(&path).unwrap(), b"0123456789abcdef");
        write(&path, "short").unwrap();
        says("openssl rand");
        write(&path, vec![b'x'; 5000]).unwrap();
        says("openssl rand");
        assert!(read_token(folder.path()).unwrap_err().to_string().contains("regular"));
    }
}
