//! Figures for people, and the same as lines of JSON for `benches/databases.py`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Where figures go.
pub struct Report {
    pub database: &'static str,
    pub json: Option<PathBuf>,
}

impl Report {
    /// One line for a person; its numbers, by name, for the file.
    pub fn line(&self, what: &str, text: &str, numbers: &[(&str, f64)]) {
        println!("{what:<44} {text}");
        let Some(path) = &self.json else {
            return;
        };
        let numbers: serde_json::Map<String, serde_json::Value> =
            numbers.iter().map(|(name, number)| ((*name).to_owned(), (*number).into())).collect();
        let line = serde_json::json!({
            "database": self.database, "what": what, "numbers": numbers,
        });
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        writeln!(file, "{line}").expect("the figures are written");
    }
}

/// Of sorted durations, in milliseconds.
pub fn at(sorted: &[Duration], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part) as usize).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// Of an odd number of figures the one in the middle.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
