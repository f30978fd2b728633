//! The sign that leads commands to a demo.
//!
//! A demo keeps its state where it was started, which nobody else knows. So it puts up a link to
//! its `state_dir`. The folder of the link has a name that every command of the same user knows: in
//! the user's runtime directory, and under the temp directory. Anybody can make a folder there, so
//! both sides use none but one that is the user's own and closed to all others.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

const LINK: &str = "state";

/// Links that lead to the `state_dir` of a running demo; taken down when this is dropped.
pub(super) struct Sign {
    _posts: Vec<Post>,
}

/// One link, in a folder that no other demo uses meanwhile.
struct Post {
    folder: PathBuf,
    link: PathBuf,
    /// Locked for as long as the sign is up.
    _lock: File,
}

impl Sign {
    /// Puts it up; `None` if it could be put up nowhere, or if another demo has its sign up.
    pub(super) fn put_up(state_dir: &Path) -> Option<Self> {
        Sign::put_up_in(&folders(), state_dir)
    }

    fn put_up_in(folders: &[PathBuf], state_dir: &Path) -> Option<Self> {
        let state_dir = std::path::absolute(state_dir).ok()?;
        let mut posts = Vec::new();
        for folder in folders {
            match Post::put_up(folder, &state_dir) {
                Ok(post) => posts.push(post),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // Commands look into the others too.
                Err(_) => {}
            }
        }
        (!posts.is_empty()).then_some(Sign { _posts: posts })
    }
}

impl Post {
    /// Makes the link, in place of one that a dead demo left.
    fn put_up(folder: &Path, state_dir: &Path) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if !is_own(folder) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let lock = File::open(folder)?;
        lock.try_lock()?;
        let link = folder.join(LINK);
        match std::fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(state_dir, &link)?;
        Ok(Post { folder: folder.to_owned(), link, _lock: lock })
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        // A link that stays leads to nobody, and a command that follows it finds that out.
        let _ = std::fs::remove_file(&self.link);
        let _ = std::fs::remove_dir(&self.folder);
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_that_others_may_enter_holds_no_sign() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("saltern-demo");
        let post = Post::put_up(&folder, Path::new("/a")).unwrap();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(!is_own(&folder));
        drop(post);
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(Post::put_up(&folder, Path::new("/c")).is_err());
        let elsewhere = place.path().join("link");
        symlink("/root", &elsewhere).unwrap();
        assert!(!is_own(&elsewhere));
    }

    #[test]
    fn the_sign_of_a_running_demo_stays() {
        let place = tempfile::tempdir().unwrap();
        let folders = [place.path().join("one"), place.path().join("two")];
        let (first_only, second_only) = (&folders[..1], &folders[1..]);
        let leads_to = |folder: &Path| std::fs::read_link(folder.join(LINK)).ok();
        let first = Sign::put_up_in(second_only, Path::new("/first")).unwrap();
        assert!(Sign::put_up_in(&folders, Path::new("/second")).is_none());
        assert!(Sign::put_up_in(second_only, Path::new("/first")).is_none());
        assert_eq!(leads_to(&folders[1]).as_deref(), Some(Path::new("/first")));
        assert_eq!(leads_to(&folders[0]), None, "nothing is left of an attempt");
        drop(first);
        assert!(!folders[1].exists());
        // A demo that was killed leaves a link.
        DirBuilder::new().mode(0o700).create(&folders[0]).unwrap();
        symlink("/killed", folders[0].join(LINK)).unwrap();
        let next = Sign::put_up_in(first_only, Path::new("/next")).unwrap();
        assert_eq!(leads_to(&folders[0]).as_deref(), Some(Path::new("/next")));
        drop(next);
    }
}
