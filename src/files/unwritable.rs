//! Errors of files that may not be written, with the advice that the shipped unit calls for.

use std::io;
use std::path::Path;

use crate::files::unit_paths;

/// The error of making or writing the file. If the daemon has no right to, it has advice.
pub(crate) fn advised(file: &Path, error: io::Error) -> io::Error {
    match (error.kind(), advice(file)) {
        (io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied, Some(advice)) => {
            io::Error::new(error.kind(), format!("{error}; {advice}"))
        }
        _ => error,
    }
}

/// Advice for the case that the daemon runs under the shipped unit.
pub(crate) fn advice(file: &Path) -> Option<String> {
    unit_paths::advice(file).map(|advice| format!("where it runs as a service, {advice}"))
}

#[cfg(test)]
mod tests {
    use crate::files::unwritable::*;

    #[test]
    fn a_place_that_the_unit_protects_has_advice_and_other_errors_have_none() {
        let said = |kind: io::ErrorKind, file: &str| advised(Path::new(file), kind.into());
        let read_only = said(io::ErrorKind::ReadOnlyFilesystem, "/var/log/salt/events");
        assert_eq!(read_only.kind(), io::ErrorKind::ReadOnlyFilesystem);
        let read_only = read_only.to_string();
        assert!(read_only.contains("ReadWritePaths=/var/log/salt`"), "{read_only}");
        let denied = said(io::ErrorKind::PermissionDenied, "/var/log/salt/events").to_string();
        assert!(denied.contains("ReadWritePaths=/var/log/salt`"), "{denied}");
        for (kind, file) in [
            (io::ErrorKind::StorageFull, "/var/log/salt/events"),
            (io::ErrorKind::PermissionDenied, "/var/log/saltern/events"),
        ] {
            assert_eq!(said(kind, file).to_string(), io::Error::from(kind).to_string());
        }
    }
}
