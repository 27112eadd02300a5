//! The actions and conditions that Amphora supports, in one table.
//!
//! Validation reads it, and so does the greeting from which a server answers service
//! discovery (XEP-0079 sections 2.1.1 and 2.2.1). What a definition must say (sections
//! 3.1 and 3.2) is a row here.

use super::rule::{Action, Condition, Deliver, MatchResource};

/// A supported action (XEP-0079 section 3.4).
#[derive(Debug)]
pub struct SupportedAction {
    /// As in the `action` attribute.
    pub name: &'static str,
    action: Action,
}

/// A supported condition (XEP-0079 section 3.3).
#[derive(Debug)]
pub struct SupportedCondition {
    /// As in the `condition` attribute.
    pub name: &'static str,
    /// Whether it can apply at every hop of a message's way.
    pub per_hop: bool,
    /// Its condition for a value, if the value suits it.
    pub(super) read: fn(&str) -> Option<Condition>,
}

/// Every supported action.
pub static ACTIONS: [SupportedAction; 4] = [
    SupportedAction { name: "alert", action: Action::Alert },
    SupportedAction { name: "drop", action: Action::Drop },
    SupportedAction { name: "error", action: Action::Error },
    SupportedAction { name: "notify", action: Action::Notify },
];

/// Every supported condition.
pub static CONDITIONS: [SupportedCondition; 3] = [
    SupportedCondition { name: "deliver", per_hop: true, read: deliver },
    SupportedCondition { name: "expire-at", per_hop: true, read: expire_at },
    SupportedCondition { name: "match-resource", per_hop: false, read: match_resource },
];

/// The names of the supported actions.
pub fn actions() -> impl Iterator<Item = &'static str> {
    ACTIONS.iter().map(|a| a.name)
}

/// The names of the supported conditions.
pub fn conditions() -> impl Iterator<Item = &'static str> {
    CONDITIONS.iter().map(|c| c.name)
}

/// The action of that name.
pub(super) fn action(name: &str) -> Option<Action> {
    ACTIONS.iter().find(|a| a.name == name).map(|a| a.action)
}

/// The condition of that name.
pub(super) fn condition(name: &str) -> Option<&'static SupportedCondition> {
    CONDITIONS.iter().find(|c| c.name == name)
}

impl Action {
    /// As in the `action` attribute, and in the `status` of the reply.
    pub fn name(self) -> &'static str {
        let [alert, drop, error, notify] = &ACTIONS;
        match self {
            Action::Alert => alert.name,
            Action::Drop => drop.name,
            Action::Error => error.name,
            Action::Notify => notify.name,
        }
    }
}

impl Condition {
    /// As in the `condition` attribute.
    pub fn name(self) -> &'static str {
        let [deliver, expire_at, match_resource] = &CONDITIONS;
        match self {
            Condition::Deliver(_) => deliver.name,
            Condition::ExpireAt(_) => expire_at.name,
            Condition::MatchResource(_) => match_resource.name,
        }
    }
}

fn deliver(value: &str) -> Option<Condition> {
    Some(Condition::Deliver(match value {
        "direct" => Deliver::Direct,
        "forward" => Deliver::Forward,
        "gateway" => Deliver::Gateway,
        "none" => Deliver::None,
        "stored" => Deliver::Stored,
        _ => return None,
    }))
}

fn expire_at(value: &str) -> Option<Condition> {
    value.parse().ok().map(Condition::ExpireAt)
}

fn match_resource(value: &str) -> Option<Condition> {
    Some(Condition::MatchResource(match value {
        "any" => MatchResource::Any,
        "exact" => MatchResource::Exact,
        "other" => MatchResource::Other,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r7_r10_r30_all_that_is_defined_is_supported() {
        assert_eq!(actions().collect::<Vec<_>>(), ["alert", "drop", "error", "notify"]);
        assert_eq!(conditions().collect::<Vec<_>>(), ["deliver", "expire-at", "match-resource"]);
    }

    #[test]
    fn r32_a_name_reads_back_as_its_action() {
        for row in &ACTIONS {
            assert_eq!(row.action.name(), row.name);
            assert_eq!(action(row.name), Some(row.action));
        }
    }

    #[test]
    fn r31_conditions_their_scope_and_their_values() {
        let table: [(&str, bool, &[&str]); 3] = [
            ("deliver", true, &["direct", "forward", "gateway", "none", "stored"]),
            ("expire-at", true, &["2004-01-01T00:00:00Z"]),
            ("match-resource", false, &["any", "exact", "other"]),
        ];
        for (name, per_hop, values) in table {
            let row = condition(name).unwrap();
            assert_eq!(row.per_hop, per_hop, "{name}");
            for value in values {
                assert_eq!((row.read)(value).unwrap().name(), name, "{value}");
            }
            for (_, _, others) in table.iter().filter(|t| t.0 != name) {
                for value in others.iter() {
                    assert_eq!((row.read)(value), None, "{name} {value}");
                }
            }
        }
    }

    #[test]
    fn the_documentation_has_them_all() {
        let docs = include_str!("../../docs/rules.md");
        for action in actions() {
            assert!(docs.contains(&format!("| `{action}` |")), "{action}");
        }
        for condition in conditions() {
            assert!(docs.contains(&format!("### `{condition}`")), "{condition}");
        }
    }
}
