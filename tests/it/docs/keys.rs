//! The keys of a kind's configuration, from its JSON Schema.

use serde_json::Value;

/// A key, with points between the names that lead to it.
pub(super) struct Key {
    pub(super) name: String,
    /// The form of the value: a size, a time, a list.
    pub(super) form: String,
    /// The value that holds without it; `None` if it has to be there.
    pub(super) default: Option<String>,
    pub(super) meaning: String,
}

/// The keys in the schema of an object, and those without which something is missing: a default,
/// or a description.
pub(super) struct Keys<'a> {
    /// The schema of the whole configuration, to which references lead.
    pub(super) root: &'a Value,
    pub(super) found: Vec<Key>,
    pub(super) incomplete: Vec<String>,
}

impl<'a> Keys<'a> {
    /// The keys of the kind in a section of the configuration, `sources` or `sinks`.
    pub(super) fn of(root: &'a Value, section: &str, kind: &str) -> Keys<'a> {
        let mut keys = Keys { root, found: Vec::new(), incomplete: Vec::new() };
        let entry = &root["properties"][section]["additionalProperties"]["properties"][kind];
        let (schema, _) = keys.resolved(entry);
        keys.add_all("", schema, None);
        keys
    }

    fn add_all(&mut self, prefix: &str, object: &'a Value, defaults: Option<&'a Value>) {
        let required = object["required"].as_array();
        for (name, schema) in object["properties"].as_object().into_iter().flatten() {
            let is_required = required.is_some_and(|all| all.iter().any(|key| key == name));
            let default = schema.get("default").or_else(|| defaults.and_then(|all| all.get(name)));
            self.add(&format!("{prefix}{name}"), schema, default, is_required);
        }
    }

    fn add(
        &mut self,
        name: &str,
        schema: &'a Value,
        default: Option<&'a Value>,
        is_required: bool,
    ) {
        let (inner, is_nullable) = self.resolved(schema);
        let has_keys = inner.get("properties").is_some();
        let described = schema["description"].as_str().unwrap_or_default().replace('\n', " ");
        let (mut meaning, said) = without_default(&described);
        if meaning.is_empty() && said.is_none() {
            self.incomplete.push(format!("{name}: it has no description"));
        }
        let choices = choices(inner);
        if choices.iter().any(|(_, meaning)| !meaning.is_empty()) {
            let all = choices.iter().map(|(name, meaning)| {
                format!("`{name}`: {}", first_small(meaning.trim_end_matches('.')))
            });
            meaning = format!("{meaning} {}.", all.collect::<Vec<_>>().join("; "));
        }
        let known = said.or_else(|| default.map(|value| written(inner, value)));
        let without = match known {
            _ if is_required => None,
            Some(known) => Some(known),
            None if is_nullable => Some("none".to_owned()),
            None if has_keys => Some("`{}`".to_owned()),
            None => {
                let how = "write `Default: …` into its doc comment";
                self.incomplete.push(format!("{name}: it has no default; {how}"));
                Some(String::new())
            }
        };
        let form = self.form(schema);
        self.found.push(Key { name: name.to_owned(), form, default: without, meaning });
        self.add_all(&format!("{name}."), inner, default);
        if let Some(items) = inner.get("items") {
            let (items, _) = self.resolved(items);
            self.add_all(&format!("{name}[]."), items, None);
        }
    }

    /// The schema behind references, and whether it may be null too.
    fn resolved(&self, schema: &'a Value) -> (&'a Value, bool) {
        if let Some(definition) = self.definition(schema) {
            return self.resolved(definition);
        }
        let Some([one, null]) = schema["anyOf"].as_array().map(Vec::as_slice) else {
            let types = schema["type"].as_array();
            return (schema, types.is_some_and(|types| types.iter().any(|name| name == "null")));
        };
        match null["type"] == "null" {
            true => (self.resolved(one).0, true),
            false => (schema, false),
        }
    }

    fn definition(&self, schema: &Value) -> Option<&'a Value> {
        let name = schema["$ref"].as_str()?.strip_prefix("#/$defs/")?;
        self.root["$defs"].get(name)
    }

    /// The form of a value in a word.
    fn form(&self, schema: &'a Value) -> String {
        let (inner, _) = self.resolved(schema);
        let all = schema.to_string();
        for (name, word) in [("ByteSize", "size"), ("Span", "time"), ("Secret", "secret")] {
            if all.contains(&format!("#/$defs/{name}\"")) && inner.get("properties").is_none() {
                return word.to_owned();
            }
        }
        let choices = choices(inner);
        if !choices.is_empty() {
            let names: Vec<_> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
            return names.join(", ");
        }
        if let Some(several) = inner["anyOf"].as_array() {
            let forms: Vec<_> = several.iter().map(|one| self.form(one)).collect();
            return forms.join(" or ");
        }
        let types = inner["type"].as_array().and_then(|types| types.first());
        match types.unwrap_or(&inner["type"]).as_str() {
            Some("boolean") => "true or false".to_owned(),
            Some("integer" | "number") => "number".to_owned(),
            Some("array") => "list".to_owned(),
            Some("object") => "mapping".to_owned(),
            _ => "text".to_owned(),
        }
    }
}

/// The words that a text may be, each with its meaning.
fn choices(schema: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().replace('\n', " ");
    let plain = schema["enum"].as_array().into_iter().flatten();
    let plain = plain.map(|word| (text(word), String::new()));
    let described = schema["oneOf"].as_array().into_iter().flatten();
    let described = described.flat_map(|one| match one.get("const") {
        Some(word) => vec![(text(word), text(&one["description"]))],
        None => choices(one),
    });
    plain.chain(described).filter(|(word, _)| !word.is_empty()).collect()
}

/// A description without its sentence `Default: …`, and what that says.
fn without_default(described: &str) -> (String, Option<String>) {
    let Some((before, behind)) = described.split_once("Default: ") else {
        return (described.to_owned(), None);
    };
    let (default, after) = behind.split_once(". ").unwrap_or((behind, ""));
    let meaning = format!("{before}{after}").trim().to_owned();
    (meaning, Some(default.trim_end_matches('.').to_owned()))
}

/// A default as a person writes it.
fn written(schema: &Value, value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) if text.is_empty() => "none".to_owned(),
        Value::String(text) => format!("`{text}`"),
        Value::Array(list) if list.is_empty() => "none".to_owned(),
        Value::Object(map) if map.is_empty() => "none".to_owned(),
        Value::Object(_) if schema.get("properties").is_some() => "`{}`".to_owned(),
        other => format!("`{other}`"),
    }
}

/// A sentence that goes on behind a colon.
fn first_small(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_lowercase().to_string()).unwrap_or_default();
    let is_word = letters.clone().next().is_some_and(|second| !second.is_uppercase());
    if is_word { first + letters.as_str() } else { text.to_owned() }
}
