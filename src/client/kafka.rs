//! The connection to Kafka, shared by the source and the sink of that name.
//!
//! librdkafka does the work. Its own settings are names and texts. An operator's are checked when
//! the configuration is read, by asking librdkafka.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaConfRes;
use schemars::JsonSchema;
use serde::de::{self, DeserializeSeed};
use serde::{Deserialize, Deserializer};
use tracing::{debug, warn};

use crate::client::stream::Stream;
use crate::client::tls::{self, Identity, TlsConfig};
use crate::files::regular_file::{self, Links};
use crate::units::Secret;

/// The time that brokers have to answer a question, while somebody waits for the answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);

/// Brokers to begin with, `HOST:PORT` each; they name the others.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<String>")]
#[schemars(with = "Vec<String>")]
pub(crate) struct Brokers(Vec<String>);

impl TryFrom<Vec<String>> for Brokers {
    type Error = String;

    fn try_from(brokers: Vec<String>) -> Result<Self, String> {
        if brokers.is_empty() {
            return Err("there are no brokers; write brokers: [HOST:9092]".to_owned());
        }
        for broker in &brokers {
            let port = broker.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() || broker.contains([',', '/', ' ']) {
                return Err(format!("`{broker}` is no broker; write HOST:PORT"));
            }
        }
        Ok(Brokers(brokers))
    }
}

impl Brokers {
    /// The stream of a topic at each of these brokers. The keys lead to its name in the settings.
    pub(crate) fn topic(&self, topic: &str, keys: &[String]) -> Vec<Stream> {
        let name = format!("the topic `{topic}`");
        let stream = |broker: &String| Stream {
            server: broker.clone(),
            name: name.clone(),
            keys: keys.to_vec(),
        };
        self.0.iter().map(stream).collect()
    }
}

impl std::fmt::Display for Brokers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// The login at the brokers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sasl {
    /// The mechanism that shows the password to the broker. Default: `SCRAM-SHA-512`.
    #[serde(default)]
    mechanism: Mechanism,
    /// The user.
    user: String,
    /// The password.
    password: Secret,
}

/// A way to show a password.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
enum Mechanism {
    /// The password as it is. Without `tls` everybody on the way can read it.
    #[serde(rename = "PLAIN")]
    Plain,
    /// SCRAM with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// SCRAM with SHA-512.
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// TLS to the brokers. `{}` trusts the system's certificates. All files are PEM.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TlsSettings {
    /// A file of certificates that are trusted. Default: the system's.
    ca: Option<PathBuf>,
    /// A file with our own certificate and those that vouch for it, for brokers that ask. Default:
    /// none.
    cert: Option<PathBuf>,
    /// The file with the key of `cert`. Default: none.
    key: Option<PathBuf>,
    /// The password of `key`, if it has one. Default: none.
    key_password: Option<Secret>,
    /// Verify the broker's certificate and name. With `false` anybody in between can read and
    /// change everything. Default: true.
    #[serde(default = "tls::yes")]
    verify: bool,
}

/// TLS to the brokers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "TlsSettings")]
#[schemars(with = "TlsSettings")]
pub(crate) struct KafkaTls {
    tls: TlsConfig,
    key_password: Option<Secret>,
}

impl TryFrom<TlsSettings> for KafkaTls {
    type Error = String;

    fn try_from(settings: TlsSettings) -> Result<Self, String> {
        let TlsSettings { ca, cert, key, key_password, verify } = settings;
        let identity = Identity::of(cert, key)?;
        if identity.is_none() && key_password.is_some() {
            return Err("`key_password` is the password of a `key`, and there is none".to_owned());
        }
        Ok(KafkaTls { tls: TlsConfig { ca, identity, verify }, key_password })
    }
}

/// Settings of librdkafka by their own names, for those without a setting of saltern's.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(transparent)]
pub(crate) struct Properties(BTreeMap<String, Scalar>);

/// A value as YAML may write it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a text, a number, `true` or `false` belongs here")]
enum Scalar {
    Bool(bool),
    Number(i64),
    Float(f64),
    Text(String),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Scalar::Bool(value) => write!(f, "{value}"),
            Scalar::Number(value) => write!(f, "{value}"),
            Scalar::Float(value) => write!(f, "{value}"),
            Scalar::Text(value) => f.write_str(value),
        }
    }
}

/// The settings of librdkafka that `brokers`, `tls` and `sasl` set.
const CONNECTION: &[(&str, &str)] = &[
    ("bootstrap.servers", "brokers"),
    ("metadata.broker.list", "brokers"),
    ("security.protocol", "tls and sasl"),
    ("ssl.ca.location", "tls.ca"),
    ("ssl.certificate.location", "tls.cert"),
    ("ssl.key.location", "tls.key"),
    ("ssl.key.password", "tls.key_password"),
    ("enable.ssl.certificate.verification", "tls.verify"),
    ("sasl.mechanism", "sasl.mechanism"),
    ("sasl.mechanisms", "sasl.mechanism"),
    ("sasl.username", "sasl.user"),
    ("sasl.password", "sasl.password"),
];

/// A property that a configuration may not set, and the key or page that says why.
pub(crate) type Owned = (&'static str, &'static str);

impl Properties {
    /// Reads them. Refuses properties that librdkafka does not take, and those that have a
    /// setting of their own.
    pub(crate) fn read<'de, D: Deserializer<'de>>(
        deserializer: D,
        owned: &'static [Owned],
    ) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PropertiesVisitor(owned))
    }

    /// Sets them, over what is set already.
    pub(crate) fn set_on(&self, config: &mut ClientConfig) {
        for (name, value) in &self.0 {
            config.set(name, value.to_string());
        }
    }
}

/// Reads properties one by one, so that a mistake has the place of its own.
struct PropertiesVisitor(&'static [Owned]);

impl<'de> de::Visitor<'de> for PropertiesVisitor {
    type Value = Properties;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Properties, A::Error> {
        let mut properties = BTreeMap::new();
        while let Some(name) = map.next_key_seed(PropertyName(self.0))? {
            let value = map.next_value_seed(ValueOf(&name))?;
            properties.insert(name, value);
        }
        Ok(Properties(properties))
    }
}

struct PropertyName(&'static [Owned]);

impl<'de> DeserializeSeed<'de> for PropertyName {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        let name = String::deserialize(deserializer)?;
        let other = CONNECTION.iter().chain(self.0).find(|(property, _)| *property == name);
        if let Some((_, other)) = other {
            let message = format!("the property `{name}` cannot be set here; see {other}");
            return Err(de::Error::custom(message));
        }
        match set_alone(&name, "") {
            Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
                Err(de::Error::custom(format_args!("librdkafka has no property `{name}`")))
            }
            // An empty text may be no value for it; its own is looked at later.
            _ => Ok(name),
        }
    }
}

struct ValueOf<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for ValueOf<'_> {
    type Value = Scalar;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Scalar, D::Error> {
        let ValueOf(name) = self;
        let value = Scalar::deserialize(deserializer)?;
        set_alone(name, &value.to_string()).map_err(|error| match error {
            // The value, which may be a secret, is left out.
            KafkaError::ClientConfig(_, reason, ..) => de::Error::custom(format_args!(
                "librdkafka refuses the property `{name}`: {reason}"
            )),
            error => {
                de::Error::custom(format_args!("librdkafka refuses the property `{name}`: {error}"))
            }
        })?;
        Ok(value)
    }
}

/// Sets a property in a configuration without any other.
fn set_alone(name: &str, value: &str) -> Result<(), KafkaError> {
    ClientConfig::new().set(name, value).create_native_config().map(drop)
}

/// The settings that lead to these brokers.
pub(crate) fn config(
    brokers: &Brokers,
    tls: Option<&KafkaTls>,
    sasl: Option<&Sasl>,
) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers.to_string());
    config.set("client.id", "saltern");
    // After a broker's restart its clients should be there again soon.
    config.set("reconnect.backoff.max.ms", "2000");
    let protocol = match (tls, sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(KafkaTls { tls: TlsConfig { ca, identity, verify }, key_password }) = tls {
        // Probes for the system's certificates: OpenSSL is built in, and looks where it was built.
        config.set("ssl.ca.location", "probe");
        let files = [
            ("ssl.ca.location", ca.as_ref()),
            ("ssl.certificate.location", identity.as_ref().map(|identity| &identity.cert)),
            ("ssl.key.location", identity.as_ref().map(|identity| &identity.key)),
        ];
        for (property, file) in files {
            if let Some(file) = file {
                config.set(property, file.display().to_string());
            }
        }
        if let Some(password) = key_password {
            config.set("ssl.key.password", password.expose());
        }
        if !verify {
            config.set("enable.ssl.certificate.verification", "false");
        }
    }
    if let Some(Sasl { mechanism, user, password }) = sasl {
        config.set("sasl.mechanism", mechanism.name());
        config.set("sasl.username", user);
        config.set("sasl.password", password.expose());
    }
    config
}

/// The reason why no client could be made of a configuration. librdkafka tells neither the name of
/// a file that it cannot read nor the reason.
pub(crate) fn not_made(error: &KafkaError, config: &ClientConfig) -> String {
    let unreadable = ["ssl.ca.location", "ssl.certificate.location", "ssl.key.location"]
        .into_iter()
        .filter_map(|property| config.get(property).filter(|path| *path != "probe"))
        .find_map(|path| Some(format!("reading {path}: {}", unreadable(path)?)));
    unreadable.unwrap_or_else(|| explained(error))
}

fn unreadable(path: &str) -> Option<std::io::Error> {
    const LONGEST: u64 = 16 << 20;
    regular_file::read(Path::new(path), Links::Follow, LONGEST).err()
}

/// librdkafka's log lines. Their errors come as errors too, so the lines are details.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, line: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            warn!(facility, line, "librdkafka says");
        }
        _ => debug!(facility, line, "librdkafka says"),
    }
}

/// The meaning of an error code, and advice.
pub(crate) fn explained(error: &KafkaError) -> String {
    let advice = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            "; there is no such topic: create it, or correct its name"
        }
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed,
        ) => "; the brokers' access lists do not allow it to this user",
        Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed) => {
            "; look at `sasl` and at the user's password"
        }
        Some(RDKafkaErrorCode::SSL) => "; look at `tls`",
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::Resolve,
        ) => "; do brokers listen at `brokers`, and with TLS only if `tls` is set?",
        _ => "",
    };
    format!("{error}{advice}")
}

#[cfg(test)]
mod tests {
    use crate::client::kafka::*;

    fn properties(json: &str) -> Result<(), String> {
        let mut json = serde_json::Deserializer::from_str(json);
        let read = Properties::read(&mut json, &[("group.id", "group")]);
        read.map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn properties_are_checked() {
        properties(r#"{"fetch.min.bytes": 1, "check.crcs": true, "client.rack": "a"}"#).unwrap();
        for (json, says) in [
            (r#"{"fetch.min.byte": 1}"#, "fetch.min.byte`"),
            (r#"{"fetch.min.bytes": "many"}"#, "fetch.min.bytes`"),
            (r#"{"group.id": "x"}"#, "see group"),
            (r#"{"sasl.password": "x"}"#, "see sasl.password"),
        ] {
            let error = properties(json).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn brokers_have_ports() {
        let read = |json: &str| serde_json::from_str::<Brokers>(json).map_err(|e| e.to_string());
        assert_eq!(read(r#"["a:1", "[::1]:2"]"#).unwrap().to_string(), "a:1,[::1]:2");
        for wrong in ["[]", r#"["a"]"#, r#"["a:b"]"#, r#"["http://a:1"]"#, r#"["a:1,b:1"]"#] {
            read(wrong).unwrap_err();
        }
    }

    #[test]
    fn passwords_go_to_librdkafka_alone() {
        let brokers = serde_json::from_str(r#"["a:1"]"#).unwrap();
        let tls = r#"{"cert": "/c", "key": "/k", "key_password": "secret"}"#;
        let tls: KafkaTls = serde_json::from_str(tls).unwrap();
        let sasl = r#"{"user": "u", "password": "hidden", "mechanism": "SCRAM-SHA-256"}"#;
        let sasl: Sasl = serde_json::from_str(sasl).unwrap();
        assert!(!format!("{sasl:?}").contains("hidden"));
        let config = config(&brokers, Some(&tls), Some(&sasl));
        assert_eq!(config.get("security.protocol"), Some("sasl_ssl"));
        assert_eq!(config.get("sasl.password"), Some("hidden"));
        assert_eq!(config.get("ssl.key.password"), Some("secret"));
        assert_eq!(config.get("ssl.key.location"), Some("/k"));
        for half in [r#"{"cert": "/c"}"#, r#"{"key": "/k"}"#, r#"{"key_password": "secret"}"#] {
            serde_json::from_str::<KafkaTls>(half).unwrap_err();
        }
    }
}
