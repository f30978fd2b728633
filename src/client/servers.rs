//! Several servers of one store. They take turns, except for those that failed lately.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use tokio::time::Instant;

use crate::client::backoff::Backoff;

/// The time that a server that failed is left alone: at first, and at the most. Its batch goes to
/// another server meanwhile.
const REST: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(120));

/// A server and what we know of it.
pub(crate) struct Site<S> {
    /// Its address.
    pub(crate) url: Url,
    /// The kind's data on it; `None` until it has answered for the first time.
    pub(crate) server: Option<S>,
    rests: Backoff,
    rests_until: Option<Instant>,
}

impl<S> Site<S> {
    fn new(url: &Url) -> Self {
        Site {
            url: url.clone(),
            server: None,
            rests: Backoff::new(REST.0, REST.1),
            rests_until: None,
        }
    }

    /// Leaves the server alone for a while.
    pub(crate) fn rest(&mut self) {
        self.rests_until = Some(Instant::now() + self.rests.delay(None));
    }

    /// The server has done a request.
    pub(crate) fn worked(&mut self) {
        self.rests.reset();
        self.rests_until = None;
    }
}

/// All servers of a sink.
pub(crate) struct Servers<S> {
    current: Site<S>,
    /// The others, in the order of their turns.
    others: VecDeque<Site<S>>,
}

impl<S> Servers<S> {
    /// The servers at these URLs. Chance decides which comes first, so that not all writers begin
    /// with the same.
    pub(crate) fn new(urls: &Urls) -> Self {
        let others = urls.others.iter().map(Site::new).collect();
        let mut servers = Servers { current: Site::new(&urls.first), others };
        for _ in 0..fastrand::usize(..=servers.others.len()) {
            servers.turn();
        }
        servers
    }

    /// The number of servers.
    pub(crate) fn count(&self) -> usize {
        self.others.len() + 1
    }

    /// The server whose turn it was last.
    pub(crate) fn current(&self) -> &Site<S> {
        &self.current
    }

    /// The server whose turn it is: the next that does not rest. If all rest it is the first to
    /// wake.
    pub(crate) fn turn(&mut self) -> &mut Site<S> {
        let now = Instant::now();
        let rest = |site: &Site<S>| site.rests_until.filter(|until| *until > now);
        let next = self.others.iter().enumerate().min_by_key(|(_, site)| rest(site));
        let next = next.filter(|(_, site)| rest(site) <= rest(&self.current)).map(|(at, _)| at);
        if let Some(next) = next.and_then(|at| self.others.remove(at)) {
            self.others.push_back(std::mem::replace(&mut self.current, next));
        }
        &mut self.current
    }
}

/// The address of a server: `http://` or `https://`, host and port, and a path where a proxy wants
/// one. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Url {
    /// The text that was written.
    text: String,
    parsed: reqwest::Url,
}

impl Url {
    /// True if it is reached over TLS.
    pub(crate) fn is_https(&self) -> bool {
        self.parsed.scheme() == "https"
    }

    /// The URL in the terms of the HTTP client.
    pub(crate) fn parsed(&self) -> &reqwest::Url {
        &self.parsed
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Url {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // No message may show a password.
        if text.contains('@') {
            return Err("a URL holds no user and no password; they have keys of their own".into());
        }
        let wrong = |why: &str| Err(format!("`{text}` is not the URL of a server: {why}"));
        let Ok(parsed) = reqwest::Url::parse(&text) else {
            return wrong("it should look like http://host:8123");
        };
        if !matches!(parsed.scheme(), "http" | "https") || !text.contains("://") {
            return wrong("it should begin with http:// or https://");
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return wrong("it must end with its path; settings have keys of their own");
        }
        Ok(Url { text, parsed })
    }
}

/// One URL or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Urls {
    first: Url,
    others: Vec<Url>,
}

impl Urls {
    /// True if any of the servers is reached over TLS.
    pub(crate) fn any_https(&self) -> bool {
        self.first.is_https() || self.others.iter().any(Url::is_https)
    }
}

impl<'de> Deserialize<'de> for Urls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UrlsVisitor)
    }
}

struct UrlsVisitor;

impl<'de> de::Visitor<'de> for UrlsVisitor {
    type Value = Urls;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a URL such as http://127.0.0.1:8123, or a list of them")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Urls, E> {
        let first = Url::try_from(text.to_owned()).map_err(E::custom)?;
        Ok(Urls { first, others: Vec::new() })
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Urls, A::Error> {
        let first = list.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
        let mut others = Vec::new();
        while let Some(url) = list.next_element()? {
            others.push(url);
        }
        Ok(Urls { first, others })
    }
}

impl JsonSchema for Urls {
    fn schema_name() -> Cow<'static, str> {
        "Urls".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let url = json_schema!({"type": "string", "pattern": "^https?://[^@?]+$"});
        json_schema!({
            "description": "A URL such as http://127.0.0.1:8123, or a list of them",
            "anyOf": [url, {"type": "array", "items": url, "minItems": 1}],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(yaml: &str) -> Result<Urls, String> {
        serde_saphyr::from_str(yaml).map_err(|error| error.to_string())
    }

    fn turns(servers: &mut Servers<()>, count: usize) -> Vec<String> {
        (0..count).map(|_| servers.turn().url.to_string()).collect()
    }

    #[test]
    fn one_url_or_more() {
        assert_eq!(urls("http://a:8123").unwrap().others, []);
        let two = urls("[http://a:8123, HTTPS://b/path]").unwrap();
        assert!(two.any_https());
        assert_eq!(two.others.len(), 1);
        for (wrong, word) in [
            ("[]", "length"),
            ("a:8123", "http://"),
            ("ftp://a", "http://"),
            ("/path", "http://"),
            ("http://a/?user=b", "settings"),
            ("http://a:hunter2@b", "password"),
            ("http://a:hunter2@b:port", "password"),
            ("3", "URL"),
        ] {
            let error = urls(wrong).unwrap_err();
            assert!(error.contains(word), "{wrong}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn servers_take_turns_and_rest_when_they_fail() {
        let urls = urls("[http://a, http://b, http://c]").unwrap();
        let mut servers = Servers::new(&urls);
        let round = turns(&mut servers, 3);
        let mut all = round.clone();
        all.sort();
        assert_eq!(all, ["http://a", "http://b", "http://c"]);
        assert_eq!(turns(&mut servers, 3), round);

        servers.turn().rest();
        let two = [round[1].clone(), round[2].clone()];
        assert_eq!(turns(&mut servers, 4), [two.clone(), two].concat());

        // With all at rest it is the turn of the first to wake.
        servers.turn().rest();
        tokio::time::advance(Duration::from_millis(1)).await;
        servers.turn().rest();
        let first = servers.turn().url.clone();
        assert_eq!(servers.turn().url, first);

        tokio::time::advance(REST.0).await;
        let mut all = turns(&mut servers, 3);
        all.sort();
        assert_eq!(all, ["http://a", "http://b", "http://c"]);
        servers.turn().worked();
    }
}
