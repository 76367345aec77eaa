//! Brings `pinfold` from a container's image to the host, where engines run its hooks, and has it
//! make there what the node serves.

use std::os::unix::fs::{chroot, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use pinfold::cli::Options;
use pinfold::engines::SHIM;
use pinfold::files::{self, Durability};
use pinfold::host::Host;
use pinfold::install::{DeviceKind, Place, cdi_file};
use pinfold::refusal::Refusal;
use pinfold::settings::Settings;

use crate::cli::InstallArgs;

/// The program's name, here and there.
const PROGRAM: &str = "pinfold";
/// The directory of the configuration, below the host's root, and the file in it.
const CONFIG: (&str, &str) = ("etc/pinfold", "config.toml");
/// Begins a configuration file that came from here: nobody else's is replaced.
const MARK: &str = "# Written by pinfold-node install; what is changed here is lost.\n";

/// Copies the program, and the configuration if one is named, and runs the program there: it makes
/// the pools that are declared, and their CDI devices. What is so already stays.
///
/// # Errors
/// There is no program beside this one; the host's directories cannot be written; its
/// configuration is somebody else's; the program fails there.
pub fn run(args: &InstallArgs, options: &Options) -> Result<u8> {
    // Starts the log.
    Settings::of_program("pinfold-node", options)?;
    let own = std::env::current_exe().context("find this program")?;
    let root = &args.root;
    let in_root = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    ensure!(
        args.bin_dir.is_absolute(),
        Refusal::usage("--bin-dir is relative", "write the whole path")
    );
    if let Some(config) = &args.config_file {
        let directory = root.join(CONFIG.0);
        let made = std::fs::create_dir_all(&directory);
        made.with_context(|| format!("make {}", directory.display()))?;
        put_config(&directory.join(CONFIG.1), &files::read(config)?)?;
    }
    let directory = in_root(&args.bin_dir);
    let made = std::fs::create_dir_all(&directory);
    made.with_context(|| format!("make {}", directory.display()))?;
    put_program(&own.with_file_name(PROGRAM), &directory)?;
    // So that it sees the host's paths, and writes them into the engines' files.
    let entered = chroot(root).and_then(|()| std::env::set_current_dir("/"));
    entered.with_context(|| format!("enter {}", root.display()))?;
    let program = args.bin_dir.join(PROGRAM);
    if let Err(refusal) = have(&program, &["apply"]) {
        // An owner may be in the way of one pool: the others are served.
        log::warn!("{refusal}");
    }
    let place = Host::new("/");
    have_devices(
        &program,
        &cdi_file(&Place::default_on(&place), DeviceKind::Lists)?,
    )?;
    for engine in &args.engine {
        have(&program, &["install", engine.word()])?;
    }
    Ok(0)
}

/// Has the program write the devices of the lists. Where that fails, those of before are served:
/// one pool that cannot be read keeps the node from no other.
///
/// # Errors
/// It failed, and there is no file of before.
fn have_devices(program: &Path, file: &Path) -> Result<()> {
    let was_there = files::entry_if_there(file)?.is_some();
    match have(program, &["cdi", "--lists"]) {
        Err(refusal) if was_there => {
            log::warn!("{refusal}; {} is kept", file.display());
            Ok(())
        }
        done => Ok(done?),
    }
}

/// Runs the program, whose output is ours.
fn have(program: &Path, arguments: &[&str]) -> Result<(), Refusal> {
    let ran = Command::new(program).args(arguments).status();
    let ended = match ran {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    Err(Refusal::new(
        format!("`pinfold {}` on the host: {ended}", arguments.join(" ")),
        "see what it says above",
    ))
}

fn put_program(program: &Path, directory: &Path) -> Result<()> {
    let bytes = bytes_if_there(program)?.ok_or_else(|| {
        Refusal::new(
            format!("there is no {}", program.display()),
            "put pinfold beside pinfold-node, as packaging/kubernetes/Containerfile does",
        )
    })?;
    let target = directory.join(PROGRAM);
    if bytes_if_there(&target)?.as_ref() != Some(&bytes) {
        files::replace(&target, &bytes, 0o755, Durability::PowerLoss)?;
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
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn put(path: &Path, text: &str) {
        files::replace(path, text.as_bytes(), 0o755, Durability::Crash).unwrap();
    }

    #[test]
    fn the_program_is_copied_once_and_replaced_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let host = tempfile::tempdir().unwrap();
        let program = dir.path().join(PROGRAM);
        let error = put_program(&program, host.path()).unwrap_err();
        assert!(format!("{error:#}").contains("Containerfile"), "{error:#}");
        put(&program, "one");
        let there = host.path().join(PROGRAM);
        put_program(&program, host.path()).unwrap();
        let metadata = there.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o755);
        assert_eq!(files::read(&host.path().join(SHIM)).unwrap(), "one");
        put_program(&program, host.path()).unwrap();
        assert_eq!(there.metadata().unwrap().ino(), metadata.ino());
        put(&program, "two");
        put_program(&program, host.path()).unwrap();
        assert_eq!(files::read(&there).unwrap(), "two");
    }

    #[test]
    fn what_fails_on_the_host_is_told() {
        have(Path::new("/bin/true"), &["apply"]).unwrap();
        for (program, part) in [
            ("/bin/false", "exit status: 1"),
            ("/nowhere", "No such file"),
        ] {
            let refusal = have(Path::new(program), &["cdi"]).unwrap_err();
            assert!(refusal.what.contains(part), "{refusal}");
        }
    }

    #[test]
    fn without_devices_it_goes_on_with_those_of_before() {
        let host = tempfile::tempdir().unwrap();
        let file = host.path().join("lists.json");
        let [well, ill] = ["/bin/true", "/bin/false"].map(Path::new);
        assert!(have_devices(ill, &file).is_err());
        have_devices(well, &file).unwrap();
        put(&file, "{}");
        have_devices(ill, &file).unwrap();
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
