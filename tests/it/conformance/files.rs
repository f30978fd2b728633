//! Stores that are files, in `store/` of the test's folder.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The folder of a store, as the tests see it and as the daemon does.
pub(crate) struct Folder {
    /// The test's.
    test: PathBuf,
    /// The folder in which the files are looked for.
    seen: PathBuf,
}

impl Folder {
    pub(crate) fn new(test: &Path) -> Self {
        let folder = Folder { test: test.to_owned(), seen: test.join("store") };
        fs::create_dir(&folder.seen).unwrap();
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.seen.join(name)
    }

    /// The directory is missing.
    pub(crate) fn remove(&self) {
        fs::remove_dir(&self.seen).unwrap();
    }

    pub(crate) fn make(&self) {
        fs::create_dir(&self.seen).unwrap();
    }

    /// The folder as the daemon of this pid sees it in its mount namespace.
    pub(crate) fn inside(&self, pid: u32) -> PathBuf {
        PathBuf::from(format!("/proc/{pid}/root{}/store", self.test.display()))
    }

    /// Copies the files out of the daemon's mount namespace, and looks at the copies from now on.
    /// (SQLite resolves links in paths, `/proc/<pid>/root` too, and so would look outside.)
    pub(crate) fn look_inside(&mut self, pid: u32) {
        self.seen = self.test.join("copied");
        fs::create_dir(&self.seen).unwrap();
        for entry in fs::read_dir(self.inside(pid)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), self.seen.join(entry.file_name())).unwrap();
        }
    }

    /// Nothing more can be written to the file system of the folder, until what this gives back is
    /// called.
    pub(crate) fn fill(&self, pid: u32) -> impl FnOnce() + use<> {
        let ballast = self.inside(pid).join("ballast");
        let mut file = File::create(&ballast).unwrap();
        for size in [4096, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        move || fs::remove_file(ballast).unwrap()
    }
}

/// The tags of a file of JSON lines; every line must be whole.
pub(crate) fn tags_of_lines(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "half a line at the end");
    let tag = |line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["tag"].as_str().unwrap().to_owned()
    };
    text.lines().map(tag).collect()
}
