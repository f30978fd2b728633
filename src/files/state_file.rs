//! The files of the daemon's state: making them, and putting damaged ones aside.
//!
//! A new file has the owner of its directory. A command of root's may make it beside a daemon of
//! another user, which else could not write it. Nothing but a regular file is opened, and no
//! symbolic link is followed. Nothing is ever deleted here.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown, lchown};
use std::path::{Path, PathBuf};

use tracing::error;

use crate::files::regular_file::{self, Links};
use crate::observe::metrics::{self, Tally};

/// The files of SQLite beside a database. Renamed before it: a new database must not find an old
/// log.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o600);
    options
}

/// Opens a file to read, and to write at its end.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    regular_file::open(path, &mut options(), Links::Refuse)
}

/// Reads a file of at most so many bytes.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    regular_file::read(path, Links::Refuse, most)
}

/// Makes a file, which must not be there; only its owner can read it.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    // Anything that is there, a symbolic link too, makes this fail.
    let file = options().create_new(true).open(path)?;
    if let Some((user, group)) = owner_besides_root(path)? {
        fchown(&file, Some(user), Some(group))?;
    }
    Ok(file)
}

/// Creates like [`create`], for a file whose parts are written again.
pub(crate) fn create_to_rewrite(path: &Path) -> io::Result<File> {
    let mut options = options();
    options.append(false).write(true).create_new(true).open(path)
}

/// Opens a file, or makes it if it is not there.
pub(crate) fn open_or_create(path: &Path) -> io::Result<File> {
    match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match create(path) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open(path),
            created => created,
        },
        opened => opened,
    }
}

/// Opens like [`open_or_create`], after it has put aside anything but a file.
pub(crate) fn open_or_replace(path: &Path) -> io::Result<File> {
    put_foreign_aside(path)?;
    open_or_create(path)
}

/// Makes a directory that only its owner can enter, and those above it, unless they are there.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        create_directory(above)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => match owner_besides_root(path)? {
            Some((user, group)) => lchown(path, Some(user), Some(group)),
            None => Ok(()),
        },
    }
}

/// Refuses a link to a directory that somebody else could change. An operator may have put one to
/// another disk.
pub(crate) fn examine_link(path: &Path) -> io::Result<()> {
    let link = path.symlink_metadata()?;
    if !link.is_symlink() {
        return Ok(());
    }
    let found = path.metadata()?;
    let users = [0, rustix::process::geteuid().as_raw(), link.uid()];
    if found.mode() & 0o022 == 0 && users.contains(&found.uid()) {
        return Ok(());
    }
    let message = format!(
        "{} is a symbolic link to a directory that others can write, or that belongs to another \
         user; `chmod 0700` that directory, or remove the link",
        path.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

/// The owner of a new file, user and group, if root makes it and its directory is another's.
fn owner_besides_root(path: &Path) -> io::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    let above = fs::metadata(above.unwrap_or(Path::new(".")))?;
    Ok((above.uid() != 0).then(|| (above.uid(), above.gid())))
}

/// Something is there that no state file ever is: a directory, a symbolic link, a device.
pub(crate) fn is_foreign(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| !metadata.is_file())
}

/// Puts aside anything but a file that is in the place of one. Files beside it stay.
pub(crate) fn put_foreign_aside(path: &Path) -> io::Result<()> {
    if !is_foreign(path) {
        return Ok(());
    }
    let aside = free_name(path);
    fs::rename(path, &aside)?;
    tell(path, &aside, &"it is no regular file");
    Ok(())
}

/// Puts aside like [`put_foreign_aside`], for the files of SQLite beside a database.
pub(crate) fn put_foreign_beside_aside(path: &Path) -> io::Result<()> {
    BESIDE.iter().try_for_each(|ending| put_foreign_aside(&with_ending(path, ending)))
}

/// Gives a damaged file, and what SQLite has beside it, a name that says so, and tells why it had
/// to be.
pub(crate) fn put_aside(path: &Path, why: &dyn std::fmt::Display) -> io::Result<()> {
    let aside = free_name(path);
    for ending in BESIDE {
        match fs::rename(with_ending(path, ending), with_ending(&aside, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, &aside)?;
    tell(path, &aside, why);
    Ok(())
}

/// Counts and logs a file that was put aside.
fn tell(path: &Path, aside: &Path, why: &dyn std::fmt::Display) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Tally::new(metrics::STATE_FILES_PUT_ASIDE, &[&name]).add(1);
    let (file, to) = (path.display(), aside.display());
    error!(
        %file,
        %to,
        error = %why,
        "a state file is damaged; it is put aside and a new one is begun"
    );
}

/// `PATH.damaged-TIME`, with a number behind it if that is taken.
fn free_name(path: &Path) -> PathBuf {
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let numbers = (1..).map(|number| match number {
        1 => String::new(),
        number => format!("-{number}"),
    });
    let mut names = numbers.map(|number| with_ending(path, &format!(".damaged-{time}{number}")));
    let is_free = |name: &PathBuf| name.symlink_metadata().is_err();
    names.find(is_free).unwrap_or_else(|| with_ending(path, ".damaged"))
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name: OsString = path.into();
    name.push(OsStr::new(ending));
    PathBuf::from(name)
}

/// SQLite says that a file is no database, or a damaged one. A disk that is full, or fails, says
/// nothing of the file.
pub(crate) fn is_damaged(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

#[cfg(test)]
mod tests {
    use crate::files::state_file::*;

    #[test]
    fn what_is_put_aside_is_kept_under_a_name_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        for round in ["first", "second"] {
            fs::write(&path, round).unwrap();
            fs::write(with_ending(&path, "-wal"), round).unwrap();
            put_aside(&path, &"a test").unwrap();
        }
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let (logs, files): (Vec<_>, Vec<_>) =
            names.partition(|name| name.to_str().unwrap().ends_with("-wal"));
        for names in [logs, files] {
            let mut texts: Vec<_> =
                names.iter().map(|name| fs::read_to_string(name).unwrap()).collect();
            texts.sort();
            assert_eq!(texts, ["first", "second"]);
        }
        assert!(!path.exists());
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (elsewhere, link) = (folder.path().join("elsewhere"), folder.path().join("link"));
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        assert!(open_or_create(&link).is_err());
        fs::write(&elsewhere, "secret").unwrap();
        assert!(open_or_create(&link).is_err());
        assert!(is_foreign(&link) && is_foreign(folder.path()) && !is_foreign(&elsewhere));
    }

    #[test]
    fn a_linked_directory_must_be_ours_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (elsewhere, link) = (folder.path().join("elsewhere"), folder.path().join("link"));
        create_directory(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        examine_link(&link).unwrap();
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o777)).unwrap();
        let error = examine_link(&link).unwrap_err();
        assert!(error.to_string().contains("others can write"), "{error}");
        examine_link(&elsewhere).unwrap();
    }

    #[test]
    fn what_root_makes_has_the_owner_of_the_directory() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can make files of another owner");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        lchown(folder.path(), Some(12_345), Some(12_346)).unwrap();
        create_directory(&folder.path().join("spill/db")).unwrap();
        drop(open_or_create(&folder.path().join("spill/db/progress")).unwrap());
        for name in ["spill", "spill/db", "spill/db/progress"] {
            let metadata = fs::metadata(folder.path().join(name)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (12_345, 12_346), "{name}");
        }
    }
}
