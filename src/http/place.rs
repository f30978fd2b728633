//! The place of the unix socket of the HTTP side: the daemon and the commands go by the same rule.
//!
//! The path of a socket has at most 107 bytes, so a `state_dir` with a long path cannot have it. It
//! is then in the user's runtime directory, or in a directory of its own under `/tmp` whose name is
//! made of the `state_dir`'s. Anybody could have made that one, so both sides check its owner.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::config::http::HttpSocket;
use crate::files::socket_file::fits;

/// The runtime directory of the systemd unit.
pub(crate) const SYSTEM: &str = "/run/saltern/http.sock";

/// The place in which a daemon has its socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The configured one.
    Configured(PathBuf),
    /// In the runtime directory or in `state_dir`.
    Usual(PathBuf),
    /// Elsewhere, because the path of `state_dir` is too long.
    Short(PathBuf),
}

impl Place {
    /// The place of a daemon with this configuration and this environment.
    pub(crate) fn of(socket: &HttpSocket, state_dir: &Path) -> Self {
        Place::among(socket, state_dir, of_unit().as_deref(), of_user().as_deref())
    }

    /// The place of a daemon that leaves the runtime directory to others.
    pub(crate) fn apart(state_dir: &Path) -> Self {
        match is_room_in(state_dir) {
            true => Place::Usual(state_dir.join(NAME)),
            false => Place::Short(shortened(state_dir, of_user().as_deref())),
        }
    }

    fn among(
        socket: &HttpSocket,
        state_dir: &Path,
        of_unit: Option<&Path>,
        of_user: Option<&Path>,
    ) -> Self {
        if let Some(path) = &socket.path {
            return Place::Configured(path.clone());
        }
        let usual = [of_unit, Some(state_dir)].into_iter().flatten().map(|dir| dir.join(NAME));
        match usual.into_iter().find(|path| fits(path).is_ok()) {
            Some(path) => Place::Usual(path),
            None => Place::Short(shortened(state_dir, of_user)),
        }
    }

    /// The path of the socket.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Place::Configured(path) | Place::Usual(path) | Place::Short(path) => path,
        }
    }

    /// Makes the directory if it is one of our own.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        let Place::Short(path) = self else { return Ok(()) };
        let Some(directory) = path.parent() else { return Ok(()) };
        match std::fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        let found = directory.symlink_metadata()?;
        let own = rustix::process::geteuid().as_raw();
        if found.is_dir() && found.uid() == own && found.mode() & 0o022 == 0 {
            return Ok(());
        }
        let message = format!(
            "{} can be changed by other users; remove it, or set http.socket.path to a path of 107 \
             bytes or less",
            directory.display()
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
    }
}

const NAME: &str = "http.sock";

/// The possible places of the socket of a daemon with this `state_dir`, in any environment.
pub(crate) fn usual_of(state_dir: &Path) -> Vec<PathBuf> {
    let inside = state_dir.join(NAME);
    if is_room_in(state_dir) {
        return vec![inside];
    }
    // Another may name it by a shorter path.
    let mut all: Vec<_> = Some(inside).filter(|path| fits(path).is_ok()).into_iter().collect();
    all.push(shortened(state_dir, None));
    // A daemon of another user has that user's runtime directory.
    let owner = state_dir.metadata().ok().map(|metadata| format!("/run/user/{}", metadata.uid()));
    for base in [of_user(), owner.map(PathBuf::from)].into_iter().flatten() {
        let path = shortened(state_dir, Some(&base));
        if !all.contains(&path) {
            all.push(path);
        }
    }
    all
}

/// Says if a socket can be in the directory, also for those who name it by its whole path.
fn is_room_in(state_dir: &Path) -> bool {
    let whole = std::path::absolute(state_dir);
    let named = [state_dir, whole.as_deref().unwrap_or(state_dir)];
    named.iter().all(|directory| fits(&directory.join(NAME)).is_ok())
}

/// The place that the environment of a systemd unit says.
pub(crate) fn of_runtime_directory() -> Option<PathBuf> {
    of_unit().map(|directory| directory.join(NAME)).filter(|path| fits(path).is_ok())
}

fn of_unit() -> Option<PathBuf> {
    // systemd lists all runtime directories of the unit.
    let all = std::env::var("RUNTIME_DIRECTORY").ok()?;
    all.split(':').next().filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn of_user() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The same for the same directory, and most likely no other's.
fn shortened(state_dir: &Path, of_user: Option<&Path>) -> PathBuf {
    // However the path is written.
    let whole = state_dir.canonicalize().or_else(|_| std::path::absolute(state_dir));
    let whole: PathBuf = whole.unwrap_or_else(|_| state_dir.to_owned()).components().collect();
    let key = xxh3_64(whole.as_os_str().as_encoded_bytes());
    let of = |base: &Path| base.join(format!("saltern-{key:016x}")).join(NAME);
    let of_user = of_user.map(of).filter(|path| fits(path).is_ok());
    of_user.unwrap_or_else(|| of(Path::new("/tmp")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_directory_comes_first_and_a_long_path_is_shortened() {
        let of = |state_dir: &str, unit: Option<&str>, user: Option<&str>| {
            let socket = HttpSocket::default();
            Place::among(&socket, Path::new(state_dir), unit.map(Path::new), user.map(Path::new))
        };
        assert_eq!(of("/s", None, Some("/u")), Place::Usual("/s/http.sock".into()));
        assert_eq!(of("/s", Some("/r"), None), Place::Usual("/r/http.sock".into()));
        let long = format!("/{}", "x".repeat(100));
        let Place::Short(short) = of(&long, None, None) else { panic!() };
        assert!(short.starts_with("/tmp") && fits(&short).is_ok());
        assert!(usual_of(Path::new(&long)).contains(&short));
        let Place::Short(of_user) = of(&long, None, Some("/u")) else { panic!() };
        assert!(of_user.starts_with("/u"));
        assert_ne!(of(&format!("{long}y"), None, None), Place::Short(short));
        let named = HttpSocket { path: Some("/x".into()), ..HttpSocket::default() };
        let place = Place::among(&named, Path::new("/s"), Some(Path::new("/r")), None);
        assert_eq!(place, Place::Configured("/x".into()));
    }

    #[test]
    fn a_daemon_apart_is_where_commands_look_for_it() {
        let long = format!("/{}", "x".repeat(100));
        for state_dir in ["/s", "relative", &long] {
            let place = Place::apart(Path::new(state_dir));
            assert!(usual_of(Path::new(state_dir)).iter().any(|path| path == place.path()));
        }
        assert_eq!(Place::apart(Path::new("/s")), Place::Usual("/s/http.sock".into()));
        assert!(matches!(Place::apart(Path::new(&long)), Place::Short(_)));
    }

    #[test]
    fn a_directory_that_others_can_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("saltern-x");
        let place = Place::Short(directory.join(NAME));
        place.prepare().unwrap();
        assert_eq!(directory.metadata().unwrap().mode() & 0o777, 0o700);
        place.prepare().unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(place.prepare().unwrap_err().to_string().contains("http.socket.path"));
    }
}
