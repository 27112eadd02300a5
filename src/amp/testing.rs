//! What the tests of this layer share.

use super::{RuleSet, check};
use crate::ns;
use crate::xml::Element;

/// An element of the AMP namespace.
pub fn element(name: &str, attrs: &[(&str, &str)], children: Vec<Element>) -> Element {
    Element {
        name: name.into(),
        ns: ns::AMP.into(),
        attrs: attrs
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        children,
        text: String::new(),
    }
}

/// A `<rule/>` of action, condition and value.
pub fn rule((action, condition, value): (&str, &str, &str)) -> Element {
    element(
        "rule",
        &[
            ("action", action),
            ("condition", condition),
            ("value", value),
        ],
        vec![],
    )
}

/// An `<amp/>` with these attributes and rules of action, condition and value.
pub fn amp(attrs: &[(&str, &str)], rules: &[(&str, &str, &str)]) -> Element {
    element("amp", attrs, rules.iter().map(|r| rule(*r)).collect())
}

/// The rules of action, condition and value, checked.
pub fn rule_set(rules: &[(&str, &str, &str)]) -> RuleSet {
    check(&[amp(&[], rules)], Some("id")).unwrap()
}
