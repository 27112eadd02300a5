//! Sizes as people write them: a whole number and a binary unit.
//!
//! Fractions and decimal units (kB, MB) are not taken: what is shown must be what was written.

use std::fmt;
use std::str::FromStr;

/// Largest first; the last divides everything.
const UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A number of bytes: `64MiB`, `512KiB`, `100B`, and `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Size(pub u64);

/// The text is not a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a whole number and one of B, KiB, MiB, GiB, TiB, as \"64MiB\"")]
pub struct BadSize;

impl FromStr for Size {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text == "0" {
            return Ok(Size(0));
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = UNITS.iter().find(|known| known.0 == unit.trim_start()).ok_or(BadSize)?;
        let number: u64 = number.parse().map_err(|_| BadSize)?;
        number.checked_mul(unit.1).map(Size).ok_or(BadSize)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divides = |unit: &&(&str, u64)| self.0 > 0 && self.0.is_multiple_of(unit.1);
        match UNITS.iter().find(divides) {
            Some((name, bytes)) => write!(f, "{}{name}", self.0 / bytes),
            None => f.write_str("0"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_as_they_parse() {
        for good in ["0", "1B", "1023B", "1KiB", "1025B", "64MiB", "3GiB", "16777215TiB"] {
            assert_eq!(good.parse::<Size>().map(|size| size.to_string()), Ok(good.to_owned()));
        }
        assert_eq!(" 2048 KiB ".parse(), Ok(Size(2 << 20)));
        assert_eq!("0MiB".parse(), Ok(Size(0)));
        let bad = ["", "64", "MiB", "64MB", "64mib", "-1B", "+1B", "1.5MiB", "16777216TiB", "1B1"];
        for bad in bad {
            assert_eq!(bad.parse::<Size>(), Err(BadSize), "{bad}");
        }
    }
}
