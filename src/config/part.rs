//! `[[store.part]]`: which database has which shards.

use std::collections::BTreeMap;

use super::check::{Check, is_name};
use super::raw::RawPart;
use super::settings::{PartSettings, StoreUrl};
use crate::shard_map::ShardSet;
use crate::store::{same_database, url_has_password};

impl Check {
    /// The parts, each right in itself, and each shard with one of them. `shards`: how many
    /// there are, if that is right.
    pub(super) fn parts(
        &mut self,
        raw: Vec<RawPart>,
        shards: Option<u32>,
    ) -> Option<Vec<PartSettings>> {
        let is_empty = raw.is_empty();
        if !is_empty {
            self.alone("store.url");
            self.alone("store.password_file");
        }
        let parts: Vec<_> =
            raw.into_iter().enumerate().map(|(index, part)| self.part(index, part)).collect();
        self.distinct(&parts);
        let parts = parts.into_iter().collect::<Option<Vec<_>>>()?;
        if !is_empty {
            self.cover(&parts, shards?)?;
        }
        Some(parts)
    }

    /// What says where all is must not be said beside parts.
    fn alone(&mut self, key: &str) {
        if self.is_written(key) {
            let says = "stands beside [[store.part]]; keep one of the two (--store-url counts as \
                        store.url)";
            self.problem(key, None, says);
        }
    }

    fn part(&mut self, index: usize, raw: RawPart) -> Option<PartSettings> {
        let key = |name: &str| format!("store.part[{index}].{name}");
        let name = self.part_name(&key("name"), raw.name.unwrap_or_else(|| index.to_string()));
        let shards = match &raw.shards {
            None => self.missing(&key("shards"), "write its shards, as \"0-127\""),
            Some(text) => match text.parse::<ShardSet>() {
                Ok(shards) => Some(shards),
                Err(bad) => self.refuse(&key("shards"), text, bad.to_string()),
            },
        };
        let url = match raw.url {
            None => self.missing(&key("url"), "write its database, as in store.url"),
            Some(url) => self.url(&key("url"), url),
        };
        let password = match (&url, raw.password_file.as_str()) {
            (_, "") | (None, _) => Some(None),
            (Some(StoreUrl(url)), path) => {
                let (has_password, is_file) = (url_has_password(url), url.starts_with("sqlite:"));
                self.password_file(&key("password_file"), path, has_password, is_file).map(Some)
            }
        };
        let password_file = Some(raw.password_file).filter(|path| !path.is_empty());
        Some(PartSettings {
            name: name?,
            shards: shards?,
            url: url?,
            password: password?,
            password_file: password_file.map(Into::into),
        })
    }

    fn part_name(&mut self, key: &str, name: String) -> Option<String> {
        match is_name(&name) {
            true => Some(name),
            false => self.refuse(
                key,
                name,
                "must be 1 to 64 of the letters a to z, digits, '-' and '_'; leave it out for its number",
            ),
        }
    }

    fn missing<T>(&mut self, key: &str, says: &str) -> Option<T> {
        self.problem(key, None, format!("is missing; {says}"));
        None
    }

    /// No name twice, no database twice.
    fn distinct(&mut self, parts: &[Option<PartSettings>]) {
        let mut names = BTreeMap::new();
        for (index, part) in parts.iter().enumerate() {
            let Some(part) = part else { continue };
            if let Some(first) = names.insert(&part.name, index) {
                let says = format!("is the name of store.part[{first}] already; choose another");
                let key = format!("store.part[{index}].name");
                self.problem(&key, Some(format!("{:?}", part.name)), says);
            }
            let same = |before: &&Option<PartSettings>| {
                before
                    .as_ref()
                    .is_some_and(|before| same_database(before.url.expose(), part.url.expose()))
            };
            if let Some(first) = parts[..index].iter().position(|before| same(&before)) {
                let says = format!(
                    "is the database of store.part[{first}] already; give each part its own, or that one these shards, too"
                );
                let key = format!("store.part[{index}].url");
                self.problem(&key, Some(format!("{:?}", part.url.to_string())), says);
            }
        }
    }

    /// Each shard has one part.
    fn cover(&mut self, parts: &[PartSettings], shards: u32) -> Option<()> {
        let mut owners: Vec<Option<usize>> = vec![None; shards as usize];
        let mut good = true;
        for (index, part) in parts.iter().enumerate() {
            let key = format!("store.part[{index}].shards");
            let value = Some(format!("{:?}", part.shards.to_string()));
            if let Some(last) = part.shards.last().filter(|last| last.0 >= shards) {
                let says = format!(
                    "there is no shard {}: processor.shards is {shards}, so the last is {}",
                    last.0,
                    shards - 1
                );
                self.problem(&key, value, says);
                good = false;
                continue;
            }
            for shard in part.shards.ranges().flatten() {
                let owner = &mut owners[shard as usize];
                if let Some(first) = *owner {
                    let says = format!(
                        "shard {shard} is with store.part[{first}] already; give each shard to one part"
                    );
                    self.problem(&key, value, says);
                    good = false;
                    break;
                }
                *owner = Some(index);
            }
        }
        if good && let Some(gap) = owners.iter().position(Option::is_none) {
            let to =
                owners[gap..].iter().position(Option::is_some).map_or(owners.len(), |n| gap + n);
            let gap = match to - gap {
                1 => format!("shard {gap} has"),
                _ => format!("the shards {gap}-{} have", to - 1),
            };
            let says = format!(
                "{gap} no part; give all of 0-{} (processor.shards = {shards}) to one each",
                shards - 1
            );
            self.problem("store.part", None, says);
            good = false;
        }
        good.then_some(())
    }
}
