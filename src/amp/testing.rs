//! What the tests of this layer share.

use proptest::prelude::*;

use super::{RuleSet, check};
use crate::ns;
use crate::xml::Element;

/// An element of the AMP namespace.
pub fn element(name: &str, attrs: &[(&str, &str)], children: Vec<Element>) -> Element {
    Element {
        name: name.into(),
        ns: ns::AMP.into(),
        attrs: attrs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        children,
        text: String::new(),
    }
}

/// A `<rule/>` of action, condition and value.
pub fn rule((action, condition, value): (&str, &str, &str)) -> Element {
    element("rule", &[("action", action), ("condition", condition), ("value", value)], vec![])
}

/// An `<amp/>` with these attributes and rules of action, condition and value.
pub fn amp(attrs: &[(&str, &str)], rules: &[(&str, &str, &str)]) -> Element {
    element("amp", attrs, rules.iter().map(|r| rule(*r)).collect())
}

/// The rules of action, condition and value, checked.
pub fn rule_set(rules: &[(&str, &str, &str)]) -> RuleSet {
    check(&[amp(&[], rules)], Some("id")).unwrap()
}

/// Elements with attributes that are almost right.
pub fn any_amp() -> impl Strategy<Value = Vec<Element>> {
    let word = || {
        prop_oneof![
            Just("drop"),
            Just("notify"),
            Just("deliver"),
            Just("expire-at"),
            Just("match-resource"),
            Just("stored"),
            Just("exact"),
            Just("2026-11-22T05:00:00Z"),
            Just("true"),
            Just("")
        ]
        .prop_map(String::from)
    };
    let text = prop_oneof![4 => word(), 1 => ".{0,200}"];
    let name = prop_oneof![
        Just("action"),
        Just("condition"),
        Just("value"),
        Just("per-hop"),
        Just("status"),
        Just("xml:lang")
    ]
    .prop_map(String::from);
    let attrs = prop::collection::vec((name, text), 0..5);
    let leaf = (
        prop_oneof![4 => Just("rule"), 1 => Just("amp")],
        prop::bool::weighted(0.9),
        attrs.clone(),
    )
        .prop_map(|(name, is_amp, attrs)| Element {
            name: name.into(),
            ns: if is_amp { ns::AMP.into() } else { String::new() },
            attrs,
            ..Element::default()
        });
    let amp = (attrs, prop::collection::vec(leaf, 0..40)).prop_map(|(attrs, children)| Element {
        name: "amp".into(),
        ns: ns::AMP.into(),
        attrs,
        children,
        text: String::new(),
    });
    prop::collection::vec(amp, 0..3)
}
