//! Hides values of events before they are stored or shown: the option `redact`.
//!
//! Rules on top of the configuration are for everything. Rules of a sink are for the events that
//! this sink is handed. The dispatcher applies the rules on top, before an event goes anywhere.
//! Data that Salt writes into the job cache goes past the dispatcher, and the job cache applies
//! these rules to it. The spooler of a sink applies the sink's rules before its queue, so that no
//! other sink bears their cost.
//!
//! A rule looks at payloads and never at tags. An event keeps its id when a value of it is
//! replaced, so that it is known for the same everywhere.

use std::sync::Arc;

use crate::event::chunk::{Chunk, Share};
use crate::event::{Event, EventKind, job_load};
use crate::observe::metrics::{self, Tally};

#[cfg(test)]
mod oracle;
mod path;
mod rewrite;
mod rules;

pub(crate) use rules::RuleConfig;
pub use rules::Rules;

/// Rules that are in force, and the counts of their replacements.
pub struct Redaction {
    rules: Arc<Rules>,
    values: Vec<Tally>,
    torn: Tally,
    too_deep: Tally,
    too_long: Tally,
}

impl Redaction {
    /// The rules of a sink, or with an empty name those on top. `None` if there are none.
    pub fn new(rules: &Arc<Rules>, sink: &str) -> Option<Arc<Self>> {
        if rules.is_empty() {
            return None;
        }
        let values = rules.names();
        let values = values.map(|name| Tally::new(metrics::REDACTED_VALUES, &[sink, name]));
        let cut = |reason| Tally::new(metrics::REDACT_CUT, &[sink, reason]);
        Some(Arc::new(Redaction {
            rules: Arc::clone(rules),
            values: values.collect(),
            torn: cut("torn"),
            too_deep: cut("too_deep"),
            too_long: cut("too_long"),
        }))
    }

    /// The event with values hidden, under the same id; `None` if it stays as it is. Replacements
    /// are counted.
    pub fn of(&self, event: &Event) -> Option<Event> {
        // The rules for the event of a new job hold for the master's load of that job too.
        let is_load = event.kind() == EventKind::JobLoad;
        let announced = if is_load { job_load::announced(event) } else { None };
        let asked = self.rules.asked(announced.as_ref().unwrap_or(event));
        if asked.is_empty() {
            return None;
        }
        let new = rewrite::rewrite(&self.rules, &asked, event.payload())?;
        for (tally, hits) in self.values.iter().zip(new.hits) {
            tally.add(hits);
        }
        self.torn.add(new.cut.torn);
        self.too_deep.add(new.cut.too_deep);
        self.too_long.add(new.cut.too_long);
        Some(event.with_payload(&new.payload))
    }

    /// The same as [`Redaction::of`], for a share; other holders of its events see no change.
    pub(crate) fn of_share(&self, share: &Share) -> Option<Share> {
        let redacted: Vec<_> = share.events().map(|event| self.of(event)).collect();
        if redacted.iter().all(Option::is_none) {
            return None;
        }
        let events = share.events().zip(redacted);
        let events = events.map(|(event, new)| new.unwrap_or_else(|| event.detached()));
        let chunk = Chunk::new(Arc::clone(share.origin()), share.received(), events.collect());
        Some(Share::all(Arc::new(chunk.vouched_for_by(share.authority()))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::codec::json;
    use crate::event::redact::rules::HIDDEN;
    use crate::event::redact::*;
    use crate::yaml::{Node, Problem};

    /// The rules under `redact` in a text, or the mistakes in them.
    pub(super) fn rules(yaml: &str) -> Result<Arc<Rules>, Vec<(usize, usize, String)>> {
        let mut problems = Vec::new();
        let mut root = Node::parse(yaml).unwrap();
        root.interpolate(&mut problems);
        let redact = root.pairs().unwrap().iter().find(|(key, _)| key.name == "redact");
        let configs: Option<Vec<RuleConfig>> = redact.unwrap().1.read_noting(&mut problems);
        let rules = Rules::new(&configs.unwrap_or_default(), &root, &mut problems);
        if problems.is_empty() {
            return Ok(Arc::new(rules));
        }
        let problem = |problem: Problem| {
            let place = problem.place.unwrap_or_default();
            (place.line, place.column, problem.message)
        };
        Err(problems.into_iter().map(problem).collect())
    }

    fn redaction(yaml: &str) -> Arc<Redaction> {
        Redaction::new(&rules(yaml).unwrap(), "").unwrap()
    }

    fn event(tag: &str, data: &Value) -> Event {
        Event::new(tag, &rmp_serde::to_vec(data).unwrap())
    }

    /// The payload with values hidden.
    fn of(redaction: &Redaction, data: &Value) -> Value {
        let event = event("salt/job/20261121233336123456/ret/web-1", data);
        let redacted = redaction.of(&event);
        serde_json::from_slice(redacted.as_ref().unwrap_or(&event).json(&mut Vec::new())).unwrap()
    }

    fn counts(redaction: &Redaction) -> Vec<u64> {
        redaction.values.iter().map(Tally::get).collect()
    }

    #[test]
    fn keys_hide_what_is_under_them_at_any_depth_and_in_either_case() {
        let redaction = redaction("redact: [{keys: ['*password*', 'pillar', '7']}]");
        let data = json!({
            "fun": "pillar.items",
            "return": {
                "db": {"Password": {"a": [1, 2]}, "db_PASSWORD_old": 7, "user": "app"},
                "users": [{"name": "x", "passwords": ["a", "b"]}, {"pass": "kept"}],
                "pillar": [1],
            },
            "fun_args": ["password=hunter2", "--db-password=a=b", "name=x", "password==x", "password="],
        });
        let expected = json!({
            "fun": "pillar.items",
            "return": {
                "db": {"Password": HIDDEN, "db_PASSWORD_old": HIDDEN, "user": "app"},
                "users": [{"name": "x", "passwords": HIDDEN}, {"pass": "kept"}],
                "pillar": HIDDEN,
            },
            "fun_args": [
                "password=**redacted**", "--db-password=**redacted**", "name=x", "password==x",
                "password=",
            ],
        });
        assert_eq!(of(&redaction, &data), expected);
        assert_eq!(counts(&redaction), [6]);
        // A number as a key is known by its digits; a hidden value is not hidden again.
        let payload = b"\x82\x07\xa1s\xc0\xa1s";
        let redacted = redaction.of(&Event::new("t", payload)).unwrap();
        assert_eq!(redacted.json(&mut Vec::new()), br#"{"7": "**redacted**", "null": "s"}"#);
        assert!(redaction.of(&redacted).is_none());
        assert_eq!(counts(&redaction), [7]);
    }

    #[test]
    fn paths_hide_what_they_lead_to() {
        let redaction = redaction(
            "redact:\n- {paths: ['$.return.secrets', '$.fun_args[*].pw', '$.a[1]', '$..deep']}\n\
             - {paths: ['$.return.*.x'], with: ''}",
        );
        let data = json!({
            "return": {"secrets": {"a": 1}, "secret": 1, "list": {"x": 1, "y": {"deep": 1}}},
            "fun_args": [{"pw": "p", "user": "u"}, "pw", {"pw": [1]}],
            "a": [1, 2, {"deep": {"deep": 2}}],
            "secrets": 1,
        });
        let expected = json!({
            "return": {"secrets": HIDDEN, "secret": 1, "list": {"x": "", "y": {"deep": HIDDEN}}},
            "fun_args": [{"pw": HIDDEN, "user": "u"}, "pw", {"pw": HIDDEN}],
            "a": [1, HIDDEN, {"deep": HIDDEN}],
            "secrets": 1,
        });
        assert_eq!(of(&redaction, &data), expected);
        assert_eq!(counts(&redaction), [6, 1]);
    }

    #[test]
    fn patterns_replace_within_texts_and_keys_and_keep_groups() {
        let redaction = redaction(
            "redact:\n- {pattern: '(?i)(api[_-]?key=)\\S+', with: '${1}…', name: api-keys}\n\
             - {pattern: '(?P<who>\\w+)@host', with: '$who$$'}",
        );
        let data = json!({
            "return": "curl API_KEY=abc&x\nroot@host: apikey=9",
            "cmd_|-curl api-key=abc_|-run": ["nothing", {"x": "api_key="}],
        });
        let expected = json!({
            "return": "curl API_KEY=…\nroot$: apikey=…",
            "cmd_|-curl api-key=…": ["nothing", {"x": "api_key="}],
        });
        assert_eq!(of(&redaction, &data), expected);
        assert_eq!(counts(&redaction), [2, 1]);
    }

    #[test]
    fn the_pattern_of_the_docs_finds_names_in_json_python_yaml_and_arguments() {
        let docs = include_str!("../../../docs/configuration.md");
        let from = docs.find("redact:\n  - name: in-text").unwrap();
        let recipe = docs[from..].split("```").next().unwrap();
        let redaction = redaction(recipe);
        for (text, expected) in [
            (r#"{"db_password": "a \" b", "x": 1}"#, r#"{"db_password": **redacted**, "x": 1}"#),
            ("{'token': 'a b', 'x': 1}", "{'token': **redacted**, 'x': 1}"),
            ("password: hunter2\nuser: x", "password: **redacted**\nuser: x"),
            ("mysql --password=hunter2 -e x", "mysql --password=**redacted** -e x"),
            ("http://h/?token=abc&x=1", "http://h/?token=**redacted**&x=1"),
        ] {
            assert_eq!(of(&redaction, &json!(text)), json!(expected));
        }
    }

    #[test]
    fn a_rule_is_for_the_tags_and_functions_that_it_names() {
        let redaction = redaction(
            "redact:\n- {keys: [a], tags: ['salt/job/*'], functions: ['pillar.*'], with: first}\n\
             - {keys: [A], with: second, tags: ['*/ret/*']}",
        );
        let value = |tag: &str, fun: &str| {
            let event = event(tag, &json!({"fun": fun, "a": 1}));
            let redacted = redaction.of(&event);
            let json: Value =
                serde_json::from_slice(redacted.as_ref().unwrap_or(&event).json(&mut Vec::new()))
                    .unwrap();
            json["a"].clone()
        };
        assert_eq!(value("salt/job/1/ret/m", "pillar.items"), "first");
        assert_eq!(value("salt/job/1/ret/m", "test.ping"), "second");
        assert_eq!(value("salt/job/1/new", "test.ping"), 1);
        assert_eq!(value("salt/auth", "pillar.items"), 1);
    }

    #[test]
    fn what_is_redacted_keeps_its_id_and_what_is_not_stays_as_it_is() {
        let redaction = redaction("redact: [{keys: [a]}]");
        let before = event("t", &json!({"a": 1, "__peer_id": "m"}));
        let after = redaction.of(&before).unwrap();
        assert_eq!((after.id(), after.tag()), (before.id(), "t"));
        assert_ne!(after.payload(), before.payload());
        assert!(redaction.of(&event("t", &json!({"b": 1}))).is_none());
        assert!(Redaction::new(&Arc::new(Rules::default()), "").is_none());
    }

    #[test]
    fn invariant_7_what_cannot_be_searched_does_not_pass() {
        let redaction = redaction("redact: [{pattern: hunter2}, {keys: [pw]}]");
        let counts = || [&redaction.torn, &redaction.too_deep, &redaction.too_long].map(Tally::get);
        let of =
            |payload: &[u8]| redaction.of(&Event::new("t", payload)).map(|e| e.payload().to_vec());
        // Something behind the value, a byte that is none, and texts that are cut off.
        assert_eq!(of(b"\xa1x\xa7hunter2").unwrap(), b"\xa1x");
        assert_eq!(of(b"\x92\xa1x\xc1hunter2").unwrap(), b"\x92\xa1x");
        assert_eq!(of(b"\x92\xa1x\xa9hunter2").unwrap(), b"\x92\xa1x");
        assert_eq!(of(b"\x82\xa2pw\x92\x01\xa9hunter2").unwrap(), b"\x82\xa2pw\xac**redacted**");
        assert_eq!(counts(), [4, 0, 0]);
        // Nothing is missing but what never came.
        assert_eq!(of(b"\x92\xa1x"), None);
        assert_eq!(of(b"\x82\xa2pw"), None);
        assert_eq!(of(b""), None);
        assert_eq!(counts(), [4, 0, 0]);
        // Deep, and deeper; and closed by nothing.
        for depth in [rewrite::MAX_DEPTH, rewrite::MAX_DEPTH + 1, 1_000_000] {
            let deep = [vec![0x91; depth], b"\xa7hunter2".to_vec()].concat();
            let redacted = of(&deep).unwrap();
            assert!(!redacted.windows(7).any(|bytes| bytes == b"hunter2"), "{depth}");
            assert!(of(&vec![0x91; depth]).is_none() == (depth <= rewrite::MAX_DEPTH), "{depth}");
        }
        assert_eq!(counts(), [4, 4, 0]);
        // A million values of a byte would become twelve million bytes.
        let many = [b"\xdd\x00\x20\x00\x00".to_vec(), vec![0xc0; 1 << 21]].concat();
        let all = rules("redact: [{paths: ['$[*]']}]").unwrap();
        let all = Redaction::new(&all, "").unwrap();
        let redacted = all.of(&Event::new("t", &many)).unwrap();
        assert_eq!((redacted.payload(), all.too_long.get()), (&b"\xac**redacted**"[..], 1));
        let text = rules("redact: [{pattern: x}]").unwrap();
        let text = Redaction::new(&text, "").unwrap();
        let many = [b"\xdb\x00\x20\x00\x00".to_vec(), vec![b'x'; 1 << 21]].concat();
        let redacted = text.of(&Event::new("t", &many)).unwrap();
        assert_eq!((redacted.payload(), text.too_long.get()), (&b"\xac**redacted**"[..], 1));
    }

    #[test]
    fn invariant_7_no_type_of_a_key_evades_a_rule() {
        use rmpv::Value;

        let secret = || Value::from("hunter2");
        let under = |key: Value| Value::Map(vec![(key, secret())]);
        let redaction = redaction(
            "redact: [{keys: ['*password*', '1.5', 'NaN', '2026-*']}, {paths: [$.path]}, \
             {pattern: '[~#]', with: ''}]",
        );
        let shows = |value: &Value| {
            let mut payload = Vec::new();
            rmpv::encode::write_value(&mut payload, value).unwrap();
            let event = Event::new("t", &payload);
            let redacted = redaction.of(&event).unwrap_or(event);
            redacted.payload().windows(7).any(|bytes| bytes == b"hunter2")
        };
        let text = Value::from("my password");
        let within = |key| Value::Map(vec![(key, Value::Nil)]);
        let deep = (0..json::MAX_KEY_DEPTH + 2).fold(Value::Nil, |key, _| within(key));
        for key in [
            Value::Ext(5, b"password".to_vec()),
            Value::Ext(78, b"20261121T23:33:36".to_vec()),
            Value::F64(1.5),
            Value::F64(f64::NAN),
            Value::Array(vec![Value::from(1), text.clone()]),
            within(text),
            // The pattern makes `password` of these.
            Value::from("pass~word"),
            Value::Ext(5, b"pass#word".to_vec()),
            Value::Array(vec![Value::from("pass~word")]),
            Value::Binary(b"a password\xff".to_vec()),
            // JSON cuts them, so what they are is not known.
            Value::Array(vec![Value::from("x".repeat(json::MAX_KEY_BYTES))]),
            Value::Array(vec![deep]),
        ] {
            assert!(!shows(&under(key.clone())), "{key:?}");
            let in_a_key = Value::Map(vec![(under(key.clone()), Value::Nil)]);
            assert!(!shows(&in_a_key), "{key:?} in a key");
        }
        assert!(!shows(&under(Value::Ext(5, b"path".to_vec()))), "a path knows it too");
        for key in [Value::Ext(5, b"user".to_vec()), Value::F64(2.5), Value::Array(Vec::new())] {
            assert!(shows(&under(key.clone())), "{key:?}");
        }
    }

    #[test]
    fn every_mistake_in_a_rule_is_reported_in_its_place() {
        let yaml = "\
redact:
  - keys: ['a', 'b[']
  - paths: ['$.a', 'b']
  - {pattern: '(hunter2', name: x}
  - {pattern: 'x*', name: x}
  - {pattern: '(x)', with: '$2'}
  - {pattern: '(x)', with: '$1y'}
  - {keys: [a], pattern: b}
  - {name: ''}
  - {keys: [a], tags: ['c[']}
";
        let expected = [
            (2, 17, "`b[` is no glob: unclosed character class; missing ']'"),
            (3, 20, "`b` is no path: it does not begin with `$`"),
            (4, 15, "this is no pattern: unclosed group"),
            (5, 15, "the pattern matches the empty text"),
            (5, 27, "two rules are called `x`"),
            (6, 28, "the pattern has no group `2`"),
            (7, 28, "the pattern has no group `1y`"),
            (8, 5, "a rule has one of `keys`, `paths` and `pattern`"),
            (9, 5, "a rule has one of `keys`, `paths` and `pattern`"),
            (9, 12, "a rule's name cannot be empty"),
            (10, 24, "`c[` is no glob: unclosed character class; missing ']'"),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(line, column, text)| (*line, *column, (*text).to_owned()))
            .collect();
        assert_eq!(rules(yaml).unwrap_err(), expected);
        let found = rules("redact: [{keys: [a], wiht: b}]").unwrap_err();
        assert_eq!(found[0].2, "unknown key `wiht`");
    }
}
