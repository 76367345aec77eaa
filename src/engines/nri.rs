//! What engines' configuration says of NRI (containerd: docs/NRI.md; its validator: containerd/nri,
//! plugins/default-validator; crio.conf(5), "crio.nri").

use toml::{Table, Value};

use super::containerd::{ContainerdFile, strings};

/// Where engines have NRI's socket by default (containerd/nri: pkg/api/plugin.go,
/// `DefaultSocketPath`).
pub const SOCKET: &str = "/var/run/nri/nri.sock";

/// The name of our plugin in an engine's configuration.
pub const PLUGIN: &str = "pinfold";

/// The table of NRI, and that of its validator inside.
const NRI: [&str; 2] = ["plugins", "io.containerd.nri.v1.nri"];
const VALIDATOR: &str = "default_validator";

/// What the files say of NRI; `None` where they do not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NriSettings {
    /// Is it off? By default containerd 1.7 has it off; 2.x, and CRI-O from 1.30 on, have it on.
    pub is_off: Option<bool>,
    /// The path of the socket.
    pub socket: Option<String>,
    /// Does the validator look at containers?
    pub validates: Option<bool>,
    /// Does the validator refuse a container to which a plugin adds hooks?
    pub rejects_hooks: Option<bool>,
    /// The plugins without which the validator refuses every container.
    pub required: Option<Vec<String>>,
}

impl NriSettings {
    /// What the files say, in the order in which containerd reads them.
    pub fn of(files: &[ContainerdFile]) -> NriSettings {
        let mut all = NriSettings::default();
        for file in files {
            let at = |path: &[&str]| file.setting(&[&NRI[..], path].concat());
            let is = |path: &[&str]| at(path)?.as_bool();
            all.is_off = is(&["disable"]).or(all.is_off);
            let socket = at(&["socket_path"]).and_then(|item| item.as_str());
            all.socket = socket.map(str::to_owned).or(all.socket);
            all.validates = is(&[VALIDATOR, "enable"]).or(all.validates);
            all.rejects_hooks =
                is(&[VALIDATOR, "reject_oci_hook_adjustment"]).or(all.rejects_hooks);
            let required = at(&[VALIDATOR, "required_plugins"]);
            all.required = required.map(|item| strings(Some(item))).or(all.required);
        }
        all
    }

    /// Adds what the next file of CRI-O's says: its table `crio`.
    pub fn add_crio(&mut self, crio: &Table) {
        let at = |path: &[&str]| -> Option<&Value> {
            let first = crio.get("nri")?;
            path.iter().try_fold(first, |table, key| table.get(*key))
        };
        let is = |path: &[&str]| at(path)?.as_bool();
        let is_on = is(&["enable_nri"]);
        self.is_off = is_on.map(|is_on| !is_on).or(self.is_off);
        let socket = at(&["nri_listen"]).and_then(Value::as_str);
        self.socket = socket.map(str::to_owned).or(self.socket.take());
        let enable = is(&[VALIDATOR, "nri_enable_default_validator"]);
        self.validates = enable.or(self.validates);
        let rejects = is(&[VALIDATOR, "nri_validator_reject_oci_hook_adjustment"]);
        self.rejects_hooks = rejects.or(self.rejects_hooks);
        let required = at(&[VALIDATOR, "nri_validator_required_plugins"]);
        if let Some(required) = required.and_then(Value::as_array) {
            let names = required.iter().filter_map(Value::as_str);
            self.required = Some(names.map(str::to_owned).collect());
        }
    }

    /// Is no container made while our plugin is not there?
    pub fn requires_us(&self) -> bool {
        let required = self.required.as_ref();
        self.validates == Some(true)
            && required.is_some_and(|all| all.iter().any(|one| one == PLUGIN))
    }

    /// Is every container refused to which our plugin adds hooks?
    pub fn refuses_us(&self) -> bool {
        self.validates == Some(true) && self.rejects_hooks == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crio_says_the_same_in_other_words() {
        let mut read = NriSettings::default();
        for text in [
            "[nri]\nenable_nri = false\nnri_listen = '/x'",
            "[nri]\nenable_nri = true\n[nri.default_validator]\n\
             nri_enable_default_validator = true\n\
             nri_validator_reject_oci_hook_adjustment = true\n\
             nri_validator_required_plugins = ['pinfold', 1]",
            "nri = 7",
            "",
        ] {
            read.add_crio(&toml::from_str(text).unwrap());
        }
        assert_eq!(
            (read.is_off, read.socket.as_deref()),
            (Some(false), Some("/x"))
        );
        assert!(read.requires_us() && read.refuses_us());
    }

    #[test]
    fn later_files_win_where_they_say_something() {
        let files = |texts: &[&str]| -> Vec<ContainerdFile> {
            let files = texts.iter();
            files
                .map(|text| ContainerdFile::parse(text, Some(2)).unwrap())
                .collect()
        };
        let table = "[plugins.\"io.containerd.nri.v1.nri\"]\n";
        let validator = "[plugins.\"io.containerd.nri.v1.nri\".default_validator]\n";
        let required = format!("{validator}enable = true\nrequired_plugins = [\"x\", \"pinfold\"]");
        let rejecting = format!("{validator}reject_oci_hook_adjustment = true");
        let off = format!("{table}disable = true");
        for (texts, is_off, requires, refuses) in [
            (vec![""], None, false, false),
            (vec![&off, ""], Some(true), false, false),
            (vec![&required], None, true, false),
            (vec![&rejecting], None, false, false),
            (vec![&required, &rejecting, &off], Some(true), true, true),
            (
                vec![&required, &format!("{validator}required_plugins = []")],
                None,
                false,
                false,
            ),
        ] {
            let read = NriSettings::of(&files(&texts));
            assert_eq!(
                (read.is_off, read.requires_us(), read.refuses_us()),
                (is_off, requires, refuses),
                "{texts:?}"
            );
        }
    }
}
