//! Opening a file that must be regular, where anything may be in its place.
//!
//! A FIFO makes its opener wait for the other side, `/dev/zero` has no end, and a device may do
//! something when it is opened. None of them is opened here, or kept open: the kind of a file is
//! checked before and after.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// The way to treat a symbolic link at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// It is followed: the operator may have put it there.
    Follow,
    /// It is refused: nobody but an attacker puts one there.
    Refuse,
}

/// Opens the file with these options.
pub(crate) fn open(path: &Path, options: &mut OpenOptions, links: Links) -> io::Result<File> {
    let there = match links {
        Links::Follow => path.metadata(),
        Links::Refuse => path.symlink_metadata(),
    };
    match there {
        Ok(there) => is_regular(there.file_type())?,
        // It may be made by the options.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let no_follow = if links == Links::Refuse { OFlags::NOFOLLOW } else { OFlags::empty() };
    // `NONBLOCK` has no effect on a regular file, and nothing else stays open.
    let flags = no_follow | OFlags::NONBLOCK;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
    is_regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// Reads a file of at most so many bytes.
pub(crate) fn read(path: &Path, links: Links, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path, OpenOptions::new().read(true), links)?;
    let mut bytes = Vec::new();
    // A byte more tells that there is more.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let message = format!("it has more than the {most} bytes that are read of it");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// Reads text like [`read`], following symbolic links.
pub(crate) fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let bytes = read(path, Links::Follow, most)?;
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

fn is_regular(kind: FileType) -> io::Result<()> {
    let what = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_symlink() => "a symbolic link",
        _ if kind.is_fifo() => "a FIFO",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    let message = format!("it is {what}, and a regular file belongs there");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::files::regular_file::*;

    #[test]
    fn nothing_but_a_regular_file_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "text").unwrap();
        fs::create_dir(at("directory")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), 0o600.into()).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();
        for (name, what) in [
            ("directory", "a directory"),
            ("fifo", "a FIFO"),
            ("socket", "a socket"),
            ("link", "a symbolic link"),
        ] {
            for options in [OpenOptions::new().read(true), OpenOptions::new().append(true)] {
                let error = open(&at(name), options, Links::Refuse).unwrap_err();
                assert!(error.to_string().contains(what), "{name}: {error}");
            }
        }
        let error = read(&at("zero"), Links::Follow, 10).unwrap_err();
        assert!(error.to_string().contains("a device"), "{error}");
        assert_eq!(read(&at("link"), Links::Follow, 4).unwrap(), b"text");
        assert_eq!(
            read(&at("link"), Links::Follow, 3).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        assert_eq!(
            read(&at("none"), Links::Refuse, 3).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
