//! The sign by which commands find a demo that they were not told of.
//!
//! A demo keeps its state where it was started, which nobody else knows. So it puts up a link to
//! its `state_dir` in a folder whose name every command of the same user can tell: in the user's
//! runtime directory, and under the temp directory. Anybody can make a folder there, so both sides
//! use none but one that is the user's own and closed to all others.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::state_dir::is_taken;

const LINK: &str = "state";

/// Links that lead to the `state_dir` of a running demo; taken down when this is dropped.
pub(super) struct Sign {
    links: Vec<PathBuf>,
    state_dir: PathBuf,
}

impl Sign {
    /// Puts it up; `None` if it could be put up nowhere.
    pub(super) fn put_up(state_dir: &Path) -> Option<Self> {
        let state_dir = std::path::absolute(state_dir).ok()?;
        let put = |folder: PathBuf| link(&folder, &state_dir).ok();
        let links: Vec<_> = folders().into_iter().filter_map(put).collect();
        (!links.is_empty()).then_some(Sign { links, state_dir })
    }
}

impl Drop for Sign {
    fn drop(&mut self) {
        // A demo that has come meanwhile goes on.
        if is_taken(&self.state_dir) {
            return;
        }
        for link in &self.links {
            if std::fs::read_link(link).is_ok_and(|leads_to| leads_to == self.state_dir) {
                // One that stays leads to nobody, which those who follow it find out.
                let _ = std::fs::remove_file(link);
                let _ = link.parent().map(std::fs::remove_dir);
            }
        }
    }
}

/// The directories that signs of this user lead to.
pub(super) fn state_dirs() -> Vec<PathBuf> {
    let own = folders().into_iter().filter(|folder| is_own(folder));
    let mut found = Vec::new();
    for state_dir in own.filter_map(|folder| std::fs::read_link(folder.join(LINK)).ok()) {
        if !found.contains(&state_dir) {
            found.push(state_dir);
        }
    }
    found
}

/// The folders that a sign may be in.
fn folders() -> Vec<PathBuf> {
    let of_user = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
    let of_user = of_user.map(|path| PathBuf::from(path).join("saltern-demo"));
    let user = rustix::process::geteuid().as_raw();
    let of_all = std::env::temp_dir().join(format!("saltern-demo-{user}"));
    of_user.into_iter().chain([of_all]).collect()
}

fn is_own(folder: &Path) -> bool {
    let user = rustix::process::geteuid().as_raw();
    folder
        .symlink_metadata()
        .is_ok_and(|found| found.is_dir() && found.uid() == user && found.mode() & 0o777 == 0o700)
}

/// Makes the link, in place of an older one.
fn link(folder: &Path, state_dir: &Path) -> io::Result<PathBuf> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if !is_own(folder) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let link = folder.join(LINK);
    let new = folder.join(format!("{LINK}.{}", std::process::id()));
    symlink(state_dir, &new)?;
    std::fs::rename(&new, &link)?;
    Ok(link)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_that_others_may_enter_holds_no_sign() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("saltern-demo");
        let sign = link(&folder, Path::new("/a")).unwrap();
        assert_eq!(link(&folder, Path::new("/b")).unwrap(), sign);
        assert_eq!(std::fs::read_link(&sign).unwrap(), Path::new("/b"));
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(!is_own(&folder));
        link(&folder, Path::new("/c")).unwrap_err();
        let elsewhere = place.path().join("link");
        symlink("/root", &elsewhere).unwrap();
        assert!(!is_own(&elsewhere));
    }
}
