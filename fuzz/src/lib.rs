//! What the fuzz targets share.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pinfold::host::Host;
use pinfold::placement::Site;
use tempfile::TempDir;

/// A directory in memory for inputs that are read from files; it goes with the process.
pub struct Scratch(TempDir);

impl Scratch {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Scratch {
        let made = tempfile::Builder::new()
            .prefix("pinfold-fuzz.")
            .tempdir_in("/dev/shm");
        Scratch(made.expect("/dev/shm can be written"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes one of its files.
    pub fn put(&self, path: &str, content: &[u8]) {
        let path = self.path().join(path);
        let parent = path.parent().expect("it is below the directory");
        fs::create_dir_all(parent).expect("the directory can be made");
        fs::write(path, content).expect("the file can be written");
    }
}

/// The site of a machine below this directory: its pools in `kcm`, its claims in `run`.
pub fn site(root: &Path) -> Site {
    Site {
        host: Host::new(root),
        conf_dir: root.join("kcm"),
        run_dir: root.join("run"),
        patience: Duration::ZERO,
        deadline: None,
        usage: None,
        last: None,
        options: Default::default(),
        confines_host: false,
    }
}
