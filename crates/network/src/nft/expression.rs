//! The words of rules.

use beta9_types::Subnet;
use serde_json::{Value, json};

/// A field of a packet's header, such as `ip` `saddr`.
pub(crate) fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

/// What the kernel knows of a packet, such as `iifname`.
pub(crate) fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

/// A property of the connection that a packet belongs to.
pub(crate) fn connection(key: &str) -> Value {
    json!({"ct": {"key": key}})
}

pub(crate) fn is(left: Value, right: impl Into<Value>) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right.into()}})
}

pub(crate) fn is_not(left: Value, right: impl Into<Value>) -> Value {
    json!({"match": {"op": "!=", "left": left, "right": right.into()}})
}

/// One of several flags is set.
pub(crate) fn has(left: Value, right: impl Into<Value>) -> Value {
    json!({"match": {"op": "in", "left": left, "right": right.into()}})
}

/// A set without a name.
pub(crate) fn any_of(values: impl IntoIterator<Item = impl Into<Value>>) -> Value {
    json!({"set": values.into_iter().map(Into::into).collect::<Vec<Value>>()})
}

/// Several in a row, as the key of a map.
pub(crate) fn together(parts: &[Value]) -> Value {
    json!({"concat": parts})
}

/// A network's addresses.
pub(crate) fn subnet(subnet: Subnet) -> Value {
    let base = subnet.base().to_string();
    let whole = if subnet.base().is_ipv4() { 32 } else { 128 };
    if subnet.prefix() == whole {
        base.into()
    } else {
        json!({"prefix": {"addr": base, "len": subnet.prefix()}})
    }
}

/// Goes where a map says, if it knows the key.
pub(crate) fn look_up(key: Value, map: &str) -> Value {
    json!({"vmap": {"key": key, "data": format!("@{map}")}})
}

/// Goes to the host's own port that a map says, if it knows the key.
pub(crate) fn redirect_by(key: Value, map: &str) -> Value {
    json!({"redirect": {"port": {"map": {"key": key, "data": format!("@{map}")}}}})
}

pub(crate) fn accept() -> Value {
    json!({"accept": null})
}

pub(crate) fn drop() -> Value {
    json!({"drop": null})
}

/// Back to the chain that jumped here.
pub(crate) fn back() -> Value {
    json!({"return": null})
}

pub(crate) fn jump(target: &str) -> Value {
    json!({"jump": {"target": target}})
}

pub(crate) fn masquerade() -> Value {
    json!({"masquerade": null})
}
