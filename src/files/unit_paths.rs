//! The places where the shipped systemd unit lets the daemon write, and advice for all others.
//!
//! A test compares this with `config/saltern.service`.

use std::path::{Component, Path, PathBuf};

/// The directories that the unit makes, and that the daemon may write to.
pub(crate) const WRITABLE: [&str; 3] = ["/var/lib/saltern", "/run/saltern", "/var/log/saltern"];

/// The user of the unit, who needs the permission to write besides.
pub(crate) const USER: &str = "salt";

/// Places that `ProtectHome=yes` hides.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

/// Places of which `PrivateTmp=yes` gives the daemon its own.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

/// Names under which a writable place is reached too.
const LINKS: [(&str, &str); 1] = [("/var/run", "/run")];

/// Advice for who has the daemon write this file under the unit; `None` where it may do so. A
/// relative path begins at `/`, where the unit starts the daemon.
pub(crate) fn advice(file: &Path) -> Option<String> {
    let file = plain(file);
    let is_below = |places: &[&str]| places.iter().any(|place| file.starts_with(place));
    if is_below(&WRITABLE) {
        return None;
    }
    let folder = file.parent().filter(|folder| *folder != Path::new("/"));
    let Some(folder) = folder.map(|folder| for_unit(&folder.to_string_lossy())) else {
        return Some(format!(
            "saltern.service does not let the daemon write there (ProtectSystem=strict), and a \
             relative path begins at `/`; name a file in a directory of its own, such as one in {}",
            WRITABLE.join(", ")
        ));
    };
    if is_below(&HOMES) {
        return Some(format!(
            "saltern.service hides home directories from the daemon (ProtectHome=yes); to show \
             this one, `systemctl edit saltern` and add `[Service]`, `ProtectHome=tmpfs` and \
             `BindPaths={folder}`; the user of the unit ({USER}) must be allowed to write to it"
        ));
    }
    if is_below(&TEMPORARY) {
        return Some(
            "saltern.service gives the daemon a temporary directory of its own, which is removed \
             when it stops (PrivateTmp=yes); for the common one, `systemctl edit saltern` and add \
             `[Service]` and `PrivateTmp=no`"
                .to_owned(),
        );
    }
    Some(format!(
        "saltern.service does not let the daemon write there (ProtectSystem=strict); to allow it, \
         `systemctl edit saltern` and add `[Service]` and `ReadWritePaths={folder}`; the directory \
         must be there, and the user of the unit ({USER}) must be allowed to write to it"
    ))
}

/// A path as a setting of a unit takes it. Between quotes a space or a colon does not end it, and a
/// double `%` begins no specifier.
fn for_unit(path: &str) -> String {
    let escaped = path.replace('%', "%%").replace('\\', r"\\").replace('"', "\\\"");
    match path.contains([' ', '\t', ':', '\\', '"', '\'']) {
        true => format!("\"{escaped}\""),
        false => escaped,
    }
}

/// The path from `/`, without `.` and `..` in it, and by the name that the unit has for it.
fn plain(file: &Path) -> PathBuf {
    let mut path = PathBuf::from("/");
    for component in file.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => drop(path.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    let inner = LINKS
        .iter()
        .find_map(|(link, place)| Some(Path::new(place).join(path.strip_prefix(link).ok()?)));
    inner.unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use crate::files::unit_paths::*;

    #[test]
    fn it_is_what_the_unit_says() {
        let unit = include_str!("../../config/saltern.service");
        let said = |key: &str| {
            let lines = unit.lines().filter_map(|line| line.split_once('='));
            let mut values = lines.filter(|(name, _)| *name == key).map(|(_, value)| value);
            let value = values.next();
            assert!(values.next().is_none(), "{key} is set twice");
            value
        };
        let below = |key: &str, folder: &str| format!("{folder}/{}", said(key).unwrap());
        let writable = [
            below("StateDirectory", "/var/lib"),
            below("RuntimeDirectory", "/run"),
            below("LogsDirectory", "/var/log"),
        ];
        assert_eq!(writable, WRITABLE);
        assert_eq!(said("User"), Some(USER));
        assert_eq!(said("ProtectSystem"), Some("strict"));
        assert_eq!(said("ProtectHome"), Some("yes"));
        assert_eq!(said("PrivateTmp"), Some("yes"));
        for key in ["ReadWritePaths", "BindPaths", "CacheDirectory", "WorkingDirectory"] {
            assert_eq!(said(key), None, "{key}");
        }
    }

    #[test]
    fn advice_for_a_place() {
        for file in [
            "/var/log/saltern/events",
            "/var/lib/saltern/a/b.db",
            "/run/saltern/x.sock",
            "/var/run/saltern/x.sock",
            "/var/log/./salt/../saltern/events",
        ] {
            assert_eq!(advice(Path::new(file)), None, "{file}");
        }
        for (file, expected) in [
            ("/var/log/salt/events", "ReadWritePaths=/var/log/salt`"),
            ("/var/log/saltern/../salt/events", "ReadWritePaths=/var/log/salt`"),
            ("/var/log/saltern-2/events", "ReadWritePaths=/var/log/saltern-2`"),
            ("salt.db", "such as one in /var/lib/saltern, "),
            ("/salt.db", "such as one in /var/lib/saltern, "),
            ("/", "such as one in /var/lib/saltern, "),
            ("/home/ops/events/a", "BindPaths=/home/ops/events`"),
            ("/tmp/events", "PrivateTmp=no"),
            ("/srv/a b/events", "ReadWritePaths=\"/srv/a b\"`"),
            ("/srv/100%/events", "ReadWritePaths=/srv/100%%`"),
            (r#"/srv/a\b "c" 'd'/events"#, r#"ReadWritePaths="/srv/a\\b \"c\" 'd'"`"#),
            ("/home/ops/a: 5%/events", "BindPaths=\"/home/ops/a: 5%%\"`"),
        ] {
            let said = advice(Path::new(file)).unwrap();
            assert!(said.contains(expected), "{file}: {said}");
        }
    }
}
