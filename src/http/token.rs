//! The token that is made at the first start, if none is configured.
//!
//! It is in a file of `state_dir` that its owner alone can read. A file that others could read, or
//! that is empty or no token, is put aside for a new one. The daemon does not refuse to start,
//! since that costs events, and a new token costs a browser one more `saltern console`. A file that
//! cannot be read just now may hold a good token, and stays.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::codec::hex::hex;
use crate::files::regular_file::{self, Links};
use crate::files::{random, state_file};
use crate::units::Secret;

/// Bytes from the operating system's generator.
const RANDOM: usize = 32;

/// The file of a daemon with this `state_dir`.
pub(crate) fn file_of(state_dir: &Path) -> PathBuf {
    state_dir.join("http-token")
}

/// The reason for which there is no token.
#[derive(Debug, Error)]
#[error("cannot read or keep a token in {}", file.display())]
pub(crate) struct TokenError {
    file: PathBuf,
    #[source]
    cause: io::Error,
}

/// The token in the file, which is made if it is not there or of no use.
pub(super) fn take(state_dir: &Path) -> Result<Secret, TokenError> {
    let file = file_of(state_dir);
    let failed = |cause| TokenError { file: file.clone(), cause };
    let why = match state_file::open(&file) {
        Ok(opened) => match read_from(&opened).map_err(failed)? {
            Ok(token) => return Ok(token),
            Err(why) => Some(why.to_owned()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) if state_file::is_foreign(&file) => Some(error.to_string()),
        Err(error) => return Err(failed(error)),
    };
    if let Some(why) = why {
        state_file::put_aside(&file, &why).map_err(failed)?;
    }
    let token = Secret::new(hex(&random::bytes::<RANDOM>().map_err(failed)?));
    keep(&file, &token).map_err(failed)?;
    Ok(token)
}

/// Writes the token into a new file.
pub(super) fn keep(file: &Path, token: &Secret) -> io::Result<()> {
    state_file::create(file)?.write_all(format!("{}\n", token.expose()).as_bytes())
}

/// The token in the file, if this user may read it.
pub(crate) fn read(file: &Path) -> io::Result<Secret> {
    let opened = regular_file::open(file, OpenOptions::new().read(true), Links::Refuse)?;
    read_from(&opened)?.map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
}

/// The token in an open file, or the reason why it has none.
fn read_from(mut file: &File) -> io::Result<Result<Secret, &'static str>> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(Err("it is no regular file"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Ok(Err("others than its owner may open it"));
    }
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(4096).read_to_end(&mut bytes)?;
    let token = str::from_utf8(&bytes).unwrap_or_default().trim();
    // A token of another form is set as http.token.
    if token.len() < 2 * RANDOM || !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(Err("it holds no token"));
    }
    Ok(Ok(Secret::new(token.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_stays_and_one_that_was_open_to_others_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = file_of(folder.path());
        let first = take(folder.path()).unwrap();
        assert_eq!(first.expose().len(), 64);
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(take(folder.path()).unwrap(), first);
        assert_eq!(read(&file).unwrap(), first);

        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        let second = take(folder.path()).unwrap();
        assert_ne!(second, first);
        std::fs::write(&file, "").unwrap();
        let third = take(folder.path()).unwrap();
        assert_ne!(third, second);
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
        assert_ne!(take(folder.path()).unwrap(), third);
        assert!(file.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn a_token_that_cannot_be_read_just_now_stays_and_what_is_no_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = file_of(folder.path());
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, 0o600.into()).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("FIFO"));
        std::fs::remove_file(&file).unwrap();
        let token = take(folder.path()).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(read(&link).unwrap_err().to_string().contains("symbolic link"));
        std::fs::write(&file, b"\xff\xfe").unwrap();
        assert_ne!(take(folder.path()).unwrap(), token, "it is no text");
        // Its path leads nowhere, which tells nothing about a token.
        let error = take(&file).unwrap_err();
        assert!(crate::error::chain(&error).contains("http-token"), "{error}");
        assert!(read(&file).is_ok());
    }
}
