//! What containerd's configuration says of NRI (containerd: docs/NRI.md; its validator:
//! containerd/nri, plugins/default-validator).

use super::containerd::{ContainerdFile, strings};

/// The name of our plugin in an engine's configuration.
pub const PLUGIN: &str = "pinfold";

/// The table of NRI, and that of its validator inside.
const NRI: [&str; 2] = ["plugins", "io.containerd.nri.v1.nri"];
const VALIDATOR: &str = "default_validator";

/// What the files say of NRI; `None` where they do not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NriSettings {
    /// Is it off? By default containerd 1.7 has it off, and 2.x on.
    pub is_off: Option<bool>,
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
            all.validates = is(&[VALIDATOR, "enable"]).or(all.validates);
            all.rejects_hooks =
                is(&[VALIDATOR, "reject_oci_hook_adjustment"]).or(all.rejects_hooks);
            let required = at(&[VALIDATOR, "required_plugins"]);
            all.required = required.map(|item| strings(Some(item))).or(all.required);
        }
        all
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
