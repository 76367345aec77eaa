//! Brings `pinfold` from a container's image to the host, where engines run its hooks, and has it
//! make there what the node serves.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chroot, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use pinfold::claims::Ledger;
use pinfold::cli::Options;
use pinfold::engines::SHIM;
use pinfold::files::{self, Durability};
use pinfold::host::Host;
use pinfold::install::{DeviceKind, Place, cdi_file};
use pinfold::refusal::Refusal;
use pinfold::settings::{Settings, hook_options};

use crate::cli::InstallArgs;

/// The program's name, here and there.
const PROGRAM: &str = "pinfold";
/// The directory of the configuration on the host, and the file in it.
const CONFIG: (&str, &str) = ("/etc/pinfold", "config.toml");
/// The mode of the run directory, whoever made it: a kubelet makes a missing `hostPath` with 0755.
const RUN_DIR_MODE: u32 = 0o700;
/// Begins a configuration file that came from here: nobody else's is replaced.
const MARK: &str = "# Written by pinfold-node install; what is changed here is lost.\n";

/// The status of a program that refused or failed.
const FAILED: i32 = 1;

/// Copies the program, and the configuration if one is named, and runs the program there: it makes
/// the pools that are declared, and their CDI devices. What is so already stays.
///
/// # Errors
/// There is no program beside this one, or it does not run on the host; the configuration makes no
/// sense, which is told before anything is written, or the one there is somebody else's; the host's
/// directories cannot be written; the program fails there.
pub fn run(args: &InstallArgs, options: &Options) -> Result<u8> {
    // Starts the log. The other options name what is on the host.
    let here = Options {
        verbose: options.verbose,
        ..Options::default()
    };
    Settings::of_program("pinfold-node", &here)?;
    let own = std::env::current_exe().context("find this program")?;
    ensure_goes_together(args, options)?;
    let passed_on = passed_on(options)?;
    let brought = brought(&own.with_file_name(PROGRAM))?;
    let config = args.config_file.as_deref();
    let config = config
        .map(|path| anyhow::Ok((path, files::read(path)?)))
        .transpose()?;
    // All that is written is written from there: a link of the host's leads where it leads the
    // host, and the program sees the host's paths, which it writes into the engines' files.
    let root = &args.root;
    let entered = chroot(root).and_then(|()| std::env::set_current_dir("/"));
    entered.with_context(|| format!("enter {}", root.display()))?;
    let settings = match &config {
        Some((path, text)) => Settings::of_text(options, text, path)?,
        None => Settings::again(options)?,
    };
    for (name, table) in settings.pools() {
        table.declared(name)?;
    }
    make_directory(&args.bin_dir)?;
    put_program(&brought, &args.bin_dir)?;
    let program = Program {
        path: args.bin_dir.join(PROGRAM),
        passed_on,
    };
    // Before its configuration is another.
    program.have(&["--version"])?;
    if let Some((_, text)) = config {
        let directory = Path::new(CONFIG.0);
        make_directory(directory)?;
        put_config(&directory.join(CONFIG.1), &text)?;
    }
    close_run_dir(&settings.site().run_dir)?;
    if let Some(refusal) = program.try_to(&["apply"])? {
        // An owner may be in the way of one pool: the others are served.
        log::warn!("{refusal}");
    }
    let devices = cdi_file(&Place::default_on(&Host::new("/")), DeviceKind::Lists)?;
    have_devices(&program, &devices)?;
    for engine in &args.engine {
        program.have(&["install", engine.word()])?;
    }
    Ok(0)
}

fn ensure_goes_together(args: &InstallArgs, options: &Options) -> Result<()> {
    ensure!(
        args.bin_dir.is_absolute(),
        Refusal::usage("--bin-dir is relative", "write the whole path")
    );
    ensure!(
        options.host_root.is_none(),
        Refusal::usage(
            "--host-root is not for install",
            "name the host's root by --root alone"
        )
    );
    ensure!(
        options.config.is_none() || args.config_file.is_none(),
        Refusal::usage(
            "--config names a file on the host that --config-file does not write",
            "leave out one of the two"
        )
    );
    let paths = [
        ("--conf-dir", &options.conf_dir),
        ("--run-dir", &options.run_dir),
        ("--config", &options.config),
    ];
    for (option, path) in paths {
        let is_whole = path.as_ref().is_none_or(|path| path.is_absolute());
        ensure!(
            is_whole,
            Refusal::usage(
                format!("{option} is relative"),
                "write the whole path, as it is on the host"
            )
        );
    }
    Ok(())
}

/// The options that the program on the host gets, too.
fn passed_on(options: &Options) -> Result<Vec<String>> {
    let mut words = hook_options(options)?;
    if let Some(seconds) = options.lock_timeout {
        words.extend(["--lock-timeout".to_owned(), seconds.to_string()]);
    }
    words.extend((0..options.verbose).map(|_| "--verbose".to_owned()));
    Ok(words)
}

/// Has the program write the devices of the lists. Where that fails, those of before are served:
/// one pool that cannot be read keeps the node from no other.
///
/// # Errors
/// It failed, and there is no file of before; it could not be run.
fn have_devices(program: &Program, file: &Path) -> Result<()> {
    let was_there = files::entry_if_there(file)?.is_some();
    match program.try_to(&["cdi", "--lists"])? {
        Some(refusal) if was_there => {
            log::warn!("{refusal}; {} is kept", file.display());
            Ok(())
        }
        Some(refusal) => Err(refusal.into()),
        None => Ok(()),
    }
}

/// The program on the host, whose output is ours.
struct Program {
    path: PathBuf,
    passed_on: Vec<String>,
}

impl Program {
    /// Runs it.
    ///
    /// # Errors
    /// It cannot be run, or does not end well.
    fn have(&self, arguments: &[&str]) -> Result<(), Refusal> {
        self.try_to(arguments)?.map_or(Ok(()), Err)
    }

    /// Runs it, and returns why it failed, if it did so by itself: with a configuration that makes
    /// sense, the pools are the reason, or who has their lock.
    ///
    /// # Errors
    /// It cannot be run, or ends as it never does by itself.
    fn try_to(&self, arguments: &[&str]) -> Result<Option<Refusal>, Refusal> {
        let ran = Command::new(&self.path)
            .args(arguments)
            .args(&self.passed_on)
            .status();
        let is_refused = matches!(&ran, Ok(status) if status.code() == Some(FAILED));
        let ended = match ran {
            Ok(status) if status.success() => return Ok(None),
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let refusal = Refusal::new(
            format!("`pinfold {}` on the host: {ended}", arguments.join(" ")),
            match is_refused {
                true => "see what it says above",
                false => "bring a pinfold that runs on this host: see what it says above",
            },
        );
        match is_refused {
            true => Ok(Some(refusal)),
            false => Err(refusal),
        }
    }
}

fn make_directory(directory: &Path) -> Result<()> {
    let made = std::fs::create_dir_all(directory);
    made.with_context(|| format!("make {}", directory.display()))
}

/// Has the run directory closed to others, as Pinfold makes it.
fn close_run_dir(run_dir: &Path) -> Result<()> {
    // Makes it where it is missing, and looks who else can change it.
    Ledger::open(run_dir)?;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(run_dir);
    let closed = opened.and_then(|directory| {
        let mode = directory.metadata()?.permissions().mode() & 0o7777;
        if mode == RUN_DIR_MODE {
            return Ok(());
        }
        directory.set_permissions(Permissions::from_mode(RUN_DIR_MODE))
    });
    closed.with_context(|| format!("close {} to others", run_dir.display()))
}

/// The program that is brought.
fn brought(program: &Path) -> Result<Vec<u8>> {
    let bytes = bytes_if_there(program)?.ok_or_else(|| {
        Refusal::new(
            format!("there is no {}", program.display()),
            "put pinfold beside pinfold-node, as packaging/kubernetes/Containerfile does",
        )
    })?;
    Ok(bytes)
}

fn put_program(bytes: &Vec<u8>, directory: &Path) -> Result<()> {
    let target = directory.join(PROGRAM);
    if bytes_if_there(&target)?.as_ref() != Some(bytes) {
        files::replace(&target, bytes, 0o755, Durability::PowerLoss)?;
        log::info!("{} is another now", target.display());
    }
    let shim = directory.join(SHIM);
    if files::entry_if_there(&shim)?.is_none() {
        let linked = symlink(PROGRAM, &shim);
        linked.with_context(|| format!("make the link {}", shim.display()))?;
    }
    Ok(())
}

/// A program's bytes, however many; `None` if there is none.
fn bytes_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if files::is_gone(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn put_config(path: &Path, text: &str) -> Result<()> {
    let wanted = format!("{MARK}{text}");
    match files::read_text_if_there(path)? {
        Some(there) if there == wanted => return Ok(()),
        Some(there) if !there.starts_with(MARK) => bail!(Refusal::new(
            format!("{} is there, and was not written by this", path.display()),
            "move it away, or leave out --config-file, so that it counts"
        )),
        Some(_) | None => {}
    }
    files::replace(path, wanted.as_bytes(), 0o644, Durability::PowerLoss)?;
    log::info!("{} is another now", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn put(path: &Path, text: &str) {
        files::replace(path, text.as_bytes(), 0o755, Durability::Crash).unwrap();
    }

    #[test]
    fn the_program_is_copied_once_and_replaced_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let host = tempfile::tempdir().unwrap();
        let program = dir.path().join(PROGRAM);
        let error = brought(&program).unwrap_err();
        assert!(format!("{error:#}").contains("Containerfile"), "{error:#}");
        put(&program, "one");
        let there = host.path().join(PROGRAM);
        put_program(&brought(&program).unwrap(), host.path()).unwrap();
        let metadata = there.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o755);
        assert_eq!(files::read(&host.path().join(SHIM)).unwrap(), "one");
        put_program(&brought(&program).unwrap(), host.path()).unwrap();
        assert_eq!(there.metadata().unwrap().ino(), metadata.ino());
        put(&program, "two");
        put_program(&brought(&program).unwrap(), host.path()).unwrap();
        assert_eq!(files::read(&there).unwrap(), "two");
    }

    fn program(path: &str) -> Program {
        Program {
            path: path.into(),
            passed_on: Vec::new(),
        }
    }

    #[test]
    fn what_fails_on_the_host_is_told() {
        program("/bin/true").have(&["apply"]).unwrap();
        let refusal = program("/bin/false").try_to(&["cdi"]).unwrap().unwrap();
        assert!(refusal.what.contains("exit status: 1"), "{refusal}");
        assert!(program("/bin/false").have(&["cdi"]).is_err());
        // What never ran has not refused anything.
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for (name, text) in [
            ("odd", "#!/bin/sh\nexit 127\n"),
            ("killed", "#!/bin/sh\nkill -9 $$\n"),
            ("lost", "#!/nowhere/sh\n"),
        ] {
            put(Path::new(&path(name)), text);
        }
        for (name, part) in [
            (path("odd"), "exit status: 127"),
            (path("killed"), "signal: 9"),
            (path("lost"), "No such file"),
            ("/nowhere".to_owned(), "No such file"),
            ("/etc/passwd".to_owned(), "Permission denied"),
        ] {
            let refusal = program(&name).try_to(&["apply"]).unwrap_err();
            assert!(refusal.what.contains(part), "{refusal}");
            assert!(refusal.remedy.contains("runs on this host"), "{refusal}");
        }
    }

    #[test]
    fn without_devices_it_goes_on_with_those_of_before() {
        let host = tempfile::tempdir().unwrap();
        let file = host.path().join("lists.json");
        let [well, ill, none] = ["/bin/true", "/bin/false", "/nowhere"].map(program);
        assert!(have_devices(&ill, &file).is_err());
        have_devices(&well, &file).unwrap();
        put(&file, "{}");
        have_devices(&ill, &file).unwrap();
        assert!(have_devices(&none, &file).is_err());
    }

    #[test]
    fn the_run_directory_is_closed_whoever_made_it() {
        let host = tempfile::tempdir().unwrap();
        let run_dir = host.path().join("run");
        for made in [None, Some(0o755), Some(0o700), Some(0o750)] {
            if let Some(mode) = made {
                std::fs::set_permissions(&run_dir, Permissions::from_mode(mode)).unwrap();
            }
            close_run_dir(&run_dir).unwrap();
            let mode = run_dir.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o700, "{made:?}");
        }
        let link = host.path().join("link");
        symlink(&run_dir, &link).unwrap();
        assert!(close_run_dir(&link).is_err());
    }

    #[test]
    fn nobody_elses_configuration_is_replaced() {
        let host = tempfile::tempdir().unwrap();
        let path = host.path().join(CONFIG.1);
        put_config(&path, "a = 1\n").unwrap();
        put_config(&path, "a = 2\n").unwrap();
        let text = files::read(&path).unwrap();
        assert!(
            text.starts_with("# Written by") && text.ends_with("\na = 2\n"),
            "{text}"
        );
        put(&path, "a = 3\n");
        let error = put_config(&path, "a = 2\n").unwrap_err();
        assert!(format!("{error:#}").contains("--config-file"), "{error:#}");
        assert_eq!(files::read(&path).unwrap(), "a = 3\n");
    }
}
