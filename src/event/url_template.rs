//! A URL with values of an event in its path and query.

use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::event::EventKind;
use crate::event::escape::Place;
use crate::event::template::{Part, Template, Values};
use crate::yaml::TemplateText;

/// A URL that begins with `http://` or `https://`; path and query may be templates. It may hold a
/// secret, so that no error shows it.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(try_from = "TemplateText")]
#[schemars(with = "String")]
pub(crate) struct UrlTemplate {
    template: Template,
    is_https: bool,
}

impl UrlTemplate {
    /// It is reached over TLS.
    pub(crate) fn is_https(&self) -> bool {
        self.is_https
    }

    /// It is the same for all events.
    pub(crate) fn is_fixed(&self) -> bool {
        self.template.fixed().is_some()
    }

    /// Its server, as a URL.
    pub(crate) fn server(&self) -> Result<Url, String> {
        self.url(&Values::none())
    }

    /// The URL for these values.
    pub(crate) fn url(&self, values: &Values<'_>) -> Result<Url, String> {
        let text = self.template.render_with(values, |value| Place::Url.escape(value));
        Url::parse(&text).map_err(|error| error.to_string())
    }
}

impl TryFrom<TemplateText> for UrlTemplate {
    type Error = String;

    fn try_from(TemplateText(text): TemplateText) -> Result<Self, String> {
        let template = Template::try_from(text)?;
        let head = match template.parts().first() {
            Some(Part::Text(head)) => head.as_str(),
            _ => "",
        };
        let (is_https, rest) = match (head.strip_prefix("https://"), head.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err("a URL begins with http:// or https:// and a host".to_owned()),
        };
        let host = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
        if host.len() == rest.len() && template.fixed().is_none() {
            return Err("the host cannot have a field: all events go to one host".to_owned());
        }
        if host.contains('@') {
            return Err("a URL holds no user and no password; they have keys of their own".into());
        }
        let url = UrlTemplate { template, is_https };
        let example = Values::of_kind(EventKind::Custom, "m");
        url.url(&example).map_err(|error| format!("this is not a URL: {error}"))?;
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::sink::testing::entry;

    fn read(text: &str) -> Result<UrlTemplate, String> {
        UrlTemplate::try_from(TemplateText(text.to_owned()))
    }

    #[test]
    fn no_minion_leads_elsewhere() {
        let url = read("https://h:8443/a/{minion}/.{minion}?m={minion}&x=1").unwrap();
        assert!(url.is_https() && !url.is_fixed());
        for (minion, segment) in [
            ("web-1", "web-1"),
            ("..", "__"),
            ("%2e%2e", "%252e%252e"),
            ("/../b", "%2F..%2Fb"),
            ("\\@evil", "%5C%40evil"),
            ("a?x=2#y", "a%3Fx%3D2%23y"),
            ("\t\n", "%09%0A"),
        ] {
            let data = serde_json::json!({"id": minion});
            let event = Event::new("x", &rmp_serde::to_vec(&data).unwrap());
            let url = url.url(&Values::of(&entry(&event))).unwrap();
            assert_eq!(
                url.as_str(),
                format!("https://h:8443/a/{segment}/.{segment}?m={segment}&x=1"),
                "{minion}"
            );
        }
    }

    #[test]
    fn what_cannot_be_a_url() {
        for wrong in [
            "",
            "h/a",
            "ftp://h/",
            "{minion}://h/",
            "http://{minion}/",
            "http://h:{minion}",
            "http://h.{minion}.example/",
            "http://u:hunter2@h/",
            "http://",
            "http://h:x/",
            "http://h/{minon}",
        ] {
            let error = read(wrong).err().unwrap_or_else(|| panic!("{wrong} is read"));
            assert!(!error.contains("hunter2"), "{error}");
        }
        for fine in ["http://h", "http://h/a@b?c={tag}", "https://[::1]:1/{date:%Y}"] {
            assert!(read(fine).is_ok(), "{fine}");
        }
    }
}
