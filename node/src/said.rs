//! Complaints that last: each is logged once, and again after it was gone.

use std::collections::BTreeMap;

use anyhow::Error;
use pinfold::refusal::Refusal;

/// What was complained of, by what it is about.
#[derive(Debug, Default)]
pub struct Said(BTreeMap<String, String>);

impl Said {
    /// Is this complaint another than the last about the same? `None` ends it.
    pub fn is_news(&mut self, about: &str, complaint: Option<&str>) -> bool {
        let Some(complaint) = complaint else {
            self.0.remove(about);
            return false;
        };
        let before = self.0.insert(about.to_owned(), complaint.to_owned());
        before.as_deref() != Some(complaint)
    }

    /// Logs the complaint if it is news.
    pub fn warn(&mut self, about: &str, complaint: Option<&str>) {
        if self.is_news(about, complaint) {
            log::warn!("{}", complaint.unwrap_or_default());
        }
    }

    /// Logs an error, if what to do about it is news: its own text can hold the name of a file that
    /// is another each time.
    pub fn warn_of(&mut self, about: &str, error: &Error) {
        if let Some(refusal) = self.news_of(about, error) {
            log::warn!("{refusal}");
        }
    }

    /// Is there a complaint about this?
    pub fn has(&self, about: &str) -> bool {
        self.0.contains_key(about)
    }

    fn news_of(&mut self, about: &str, error: &Error) -> Option<Refusal> {
        let refusal = Refusal::of(error);
        self.is_news(about, Some(&refusal.remedy))
            .then_some(refusal)
    }

    /// Forgets all about what `is_there` does not know any more.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|about, _| is_there(about));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_news_by_what_to_do_about_it() {
        let mut said = Said::default();
        let error = |code, path: &str| {
            Error::new(std::io::Error::from_raw_os_error(code)).context(path.to_owned())
        };
        for (code, path, is_news) in [
            (nix::libc::EROFS, "replace .x.abc-0", true),
            (nix::libc::EROFS, "replace .x.def-0", false),
            (nix::libc::ENOSPC, "replace .x.ghi-0", true),
        ] {
            let news = said.news_of("x", &error(code, path));
            assert_eq!(news.is_some(), is_news, "{path}");
        }
    }

    #[test]
    fn a_complaint_is_news_once_and_again_after_it_was_gone() {
        let mut said = Said::default();
        for (about, complaint, expected) in [
            ("a", Some("x"), true),
            ("a", Some("x"), false),
            ("b", Some("x"), true),
            ("a", Some("y"), true),
            ("a", None, false),
            ("a", Some("y"), true),
        ] {
            assert_eq!(
                said.is_news(about, complaint),
                expected,
                "{about} {complaint:?}"
            );
        }
        said.keep(|about| about == "b");
        assert!(said.is_news("a", Some("y")) && !said.is_news("b", Some("x")));
    }
}
