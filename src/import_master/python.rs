//! A value as Salt's Python takes it: as a text, and as true or false.

use crate::yaml::{Node, Value};

/// A value as text; `None` for lists, mappings and nothing.
pub(super) fn scalar(node: &Node) -> Option<String> {
    match &node.value {
        Value::Text(text) | Value::Replaced { text, .. } => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Int(number) => Some(number.to_string()),
        Value::Uint(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Null | Value::Nothing | Value::List(_) | Value::Map(_) => None,
    }
}

/// True if Python takes the value for false.
pub(super) fn is_false(node: &Node) -> bool {
    match &node.value {
        Value::Null | Value::Nothing | Value::Bool(false) | Value::Uint(0) | Value::Int(0) => true,
        Value::Bool(true) | Value::Uint(_) | Value::Int(_) => false,
        Value::Float(number) => *number == 0.0,
        Value::Text(text) | Value::Replaced { text, .. } => text.is_empty(),
        Value::List(nodes) => nodes.is_empty(),
        Value::Map(pairs) => pairs.is_empty(),
    }
}
