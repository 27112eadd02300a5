//! Points in time, as XEP-0082 writes them. Nothing here reads a clock.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::civil::DateTime;

const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
const MICROS_PER_SECOND: i64 = 1_000_000;

/// Microseconds since the Unix epoch, in UTC, leap seconds not counted.
///
/// Always within the years 1 to 9999, so that each can be written and read again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Timestamp(i64);

impl Timestamp {
    /// `0001-01-01T00:00:00Z`
    pub const MIN: Timestamp = Timestamp(-62_135_596_800 * MICROS_PER_SECOND);
    /// `9999-12-31T23:59:59.999999Z`
    pub const MAX: Timestamp = Timestamp(253_402_300_800 * MICROS_PER_SECOND - 1);

    /// That many microseconds after the Unix epoch; before it, if negative. What is
    /// outside the years 1 to 9999 becomes [`Timestamp::MIN`] or [`Timestamp::MAX`].
    pub const fn from_micros(micros: i64) -> Self {
        if micros < Self::MIN.0 {
            Self::MIN
        } else if micros > Self::MAX.0 {
            Self::MAX
        } else {
            Timestamp(micros)
        }
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// That much later, whole microseconds of it; none after the year 9999.
    pub fn checked_add(self, duration: Duration) -> Option<Self> {
        let micros = i64::try_from(duration.as_micros()).ok()?;
        let later = self.0.checked_add(micros)?;
        (later <= Self::MAX.0).then_some(Timestamp(later))
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).try_into().unwrap_or(0))
    }
}

/// Why a text is no point in time. The text itself stays out of it: it may be long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TimeError {
    /// Another form than `CCYY-MM-DDThh:mm:ss[.sss]TZD`.
    #[error("not in the form CCYY-MM-DDThh:mm:ss[.sss]Z")]
    Form,
    /// An offset from UTC.
    #[error("not in UTC")]
    NotUtc,
    /// A day or time of day that does not exist: February 30th, 24:00:00, second 60, year 0.
    #[error("no such day or time")]
    NoSuchTime,
}

/// Reads the DateTime profile of XEP-0082, in UTC only.
///
/// The zone is `Z`, `+00:00` or `-00:00`: the profile is XML Schema's `dateTime`
/// ("the latter overrule"), for which all three are UTC. A fraction may have any
/// number of digits; it is rounded up to a microsecond, so that nothing that waits
/// for this time happens before it. Hours end at 23 and seconds at 59, as in
/// XEP-0082's own table; years are 0001 to 9999.
impl FromStr for Timestamp {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let (seconds, rest) = text.as_bytes().split_at_checked(19).ok_or(TimeError::Form)?;
        let seconds = parse_seconds(seconds)?;
        let (micros, zone) = match rest {
            [b'.', rest @ ..] => parse_fraction(rest)?,
            zone => (0, zone),
        };
        match zone {
            b"Z" | b"+00:00" | b"-00:00" => {
                Ok(Timestamp::from_micros(seconds * MICROS_PER_SECOND + micros))
            }
            [b'+' | b'-', h1, h2, b':', m1, m2]
                if [h1, h2, m1, m2].iter().all(|b| b.is_ascii_digit()) =>
            {
                Err(TimeError::NotUtc)
            }
            _ => Err(TimeError::Form),
        }
    }
}

/// `CCYY-MM-DDThh:mm:ss` as seconds since the epoch.
fn parse_seconds(text: &[u8]) -> Result<i64, TimeError> {
    let &[c1, c2, y1, y2, b'-', mo1, mo2, b'-', d1, d2, b'T', h1, h2, b':', mi1, mi2, b':', s1, s2] =
        text
    else {
        return Err(TimeError::Form);
    };
    let century = two_digits(c1, c2)?;
    let year = i16::from(century) * 100 + i16::from(two_digits(y1, y2)?);
    let (month, day) = (two_digits(mo1, mo2)?, two_digits(d1, d2)?);
    let (hour, minute, second) = (two_digits(h1, h2)?, two_digits(mi1, mi2)?, two_digits(s1, s2)?);
    if year == 0 {
        return Err(TimeError::NoSuchTime);
    }
    let time = DateTime::new(year, month, day, hour, minute, second, 0)
        .map_err(|_| TimeError::NoSuchTime)?;
    Ok(time.duration_since(EPOCH).as_secs())
}

fn two_digits(tens: u8, ones: u8) -> Result<i8, TimeError> {
    if tens.is_ascii_digit() && ones.is_ascii_digit() {
        Ok(((tens - b'0') * 10 + (ones - b'0')) as i8)
    } else {
        Err(TimeError::Form)
    }
}

/// What follows the point: microseconds, rounded up, and what is left.
fn parse_fraction(text: &[u8]) -> Result<(i64, &[u8]), TimeError> {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Err(TimeError::Form);
    }
    let padded = digits.iter().copied().chain(std::iter::repeat(b'0')).take(6);
    let micros = padded.fold(0, |micros, digit| micros * 10 + i64::from(digit - b'0'));
    let more = digits.iter().skip(6).any(|digit| *digit != b'0');
    Ok((micros + i64::from(more), rest))
}

/// As `2026-11-22T05:00:00.123Z`: milliseconds, rounded down.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = EPOCH.saturating_add(SignedDuration::from_micros(self.0));
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            time.year(),
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.millisecond(),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn micros(text: &str) -> Result<i64, TimeError> {
        text.parse::<Timestamp>().map(Timestamp::as_micros)
    }

    #[test]
    fn r36_datetimes_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-07-21T02:56:15Z", -14_159_025_000_000),
            ("1969-12-31T23:59:59.999999Z", -1),
            ("2004-01-01T00:00:00Z", 1_072_915_200_000_000),
            ("2024-02-29T12:30:45.5Z", 1_709_209_845_500_000),
            ("2026-11-22T05:00:00.123Z", 1_795_323_600_123_000),
            ("0001-01-01T00:00:00Z", Timestamp::MIN.as_micros()),
            ("9999-12-31T23:59:59.999999Z", Timestamp::MAX.as_micros()),
        ] {
            assert_eq!(micros(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn r36_fractions_of_any_length_are_rounded_up() {
        for (fraction, expected) in [
            ("0", 0),
            ("000000000000", 0),
            ("1", 100_000),
            ("000001", 1),
            ("0000010000", 1),
            ("0000010001", 2),
            ("00000000000000000000000000000000000000001", 1),
            ("123456", 123_456),
            ("1234561", 123_457),
            ("9999999", 1_000_000),
        ] {
            assert_eq!(
                micros(&format!("1970-01-01T00:00:00.{fraction}Z")),
                Ok(expected),
                "{fraction}"
            );
        }
        assert_eq!(micros("9999-12-31T23:59:59.9999999Z"), Ok(Timestamp::MAX.as_micros()));
    }

    #[test]
    fn r37_only_utc() {
        for (zone, expected) in [
            ("Z", Ok(0)),
            ("+00:00", Ok(0)),
            ("-00:00", Ok(0)),
            ("+01:00", Err(TimeError::NotUtc)),
            ("-00:01", Err(TimeError::NotUtc)),
            ("-08:00", Err(TimeError::NotUtc)),
            ("", Err(TimeError::Form)),
            ("z", Err(TimeError::Form)),
            ("+00", Err(TimeError::Form)),
            ("+0000", Err(TimeError::Form)),
            ("+00:00 ", Err(TimeError::Form)),
            ("+0x:00", Err(TimeError::Form)),
            ("ZZ", Err(TimeError::Form)),
            ("UTC", Err(TimeError::Form)),
            ("[UTC]", Err(TimeError::Form)),
        ] {
            assert_eq!(micros(&format!("1970-01-01T00:00:00{zone}")), expected, "{zone}");
            assert_eq!(micros(&format!("1970-01-01T00:00:00.000{zone}")), expected, ".000{zone}");
        }
    }

    #[test]
    fn r36_other_forms_are_refused() {
        for text in [
            "",
            "Z",
            "2026-11-22",
            "2026-11-22Z",
            "05:00:00Z",
            "2026-11-22T05:00Z",
            "2026-11-22t05:00:00Z",
            "2026-11-22 05:00:00Z",
            " 2026-11-22T05:00:00Z",
            "2026-11-22T05:00:00Z ",
            "2026-11-22T05:00:00 Z",
            "2026-11-22T05:00:00.Z",
            "2026-11-22T05:00:00,5Z",
            "2026-11-22T05:00:00.-5Z",
            "20261122T05:00:00Z",
            "2026-1-22T05:00:00Z",
            "+2026-11-22T05:00:00Z",
            "-001-11-22T05:00:00Z",
            "12026-11-22T05:00:00Z",
            "2026-W47-7T05:00:00Z",
            "2026-11-22T+5:00:00Z",
            "２０２６-11-22T05:00:00Z",
            "1795323600",
            "tomorrow",
        ] {
            assert_eq!(micros(text), Err(TimeError::Form), "{text}");
        }
    }

    #[test]
    fn r36_days_and_times_that_do_not_exist_are_refused() {
        for text in [
            "0000-01-01T00:00:00Z",
            "2026-00-22T05:00:00Z",
            "2026-13-22T05:00:00Z",
            "2026-11-00T05:00:00Z",
            "2026-11-31T05:00:00Z",
            "2026-02-29T05:00:00Z",
            "1900-02-29T05:00:00Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T05:60:00Z",
            "2016-12-31T23:59:60Z",
        ] {
            assert_eq!(micros(text), Err(TimeError::NoSuchTime), "{text}");
        }
    }

    #[test]
    fn printed_with_milliseconds_rounded_down() {
        for (micros, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_323_600_123_999, "2026-11-22T05:00:00.123Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (i64::MIN, "0001-01-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp::from_micros(micros).to_string(), expected);
        }
    }

    #[test]
    fn sums_and_differences() {
        let day = Duration::from_secs(86_400);
        let noon = Timestamp::from_micros(43_200_000_000);
        let next = noon.checked_add(day).unwrap();
        assert_eq!(next.to_string(), "1970-01-02T12:00:00.000Z");
        assert_eq!(next.since(noon), day);
        assert_eq!(noon.since(next), Duration::ZERO);
        assert_eq!(Timestamp::MAX.since(Timestamp::MIN).as_micros(), 315_537_897_600_000_000 - 1);
        assert_eq!(Timestamp::MAX.checked_add(Duration::from_nanos(999)), Some(Timestamp::MAX));
        assert_eq!(Timestamp::MAX.checked_add(Duration::from_micros(1)), None);
        assert_eq!(noon.checked_add(Duration::MAX), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}") {
            let _ = text.parse::<Timestamp>();
        }

        #[test]
        fn nearly_a_datetime_is_read_or_refused(
            text in r"[0-9]{4}-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{0,30})?(Z|[+-]0[0-9]:00)?"
        ) {
            let time = text.parse::<Timestamp>();
            if !text.contains('.') && let Ok(time) = time {
                prop_assert_eq!(&time.to_string()[..19], &text[..19]);
            }
        }

        #[test]
        fn what_is_printed_is_read_again(micros in any::<i64>()) {
            let time = Timestamp::from_micros(micros);
            let again: Timestamp = time.to_string().parse().unwrap();
            prop_assert_eq!(again.as_micros(), time.as_micros().div_euclid(1000) * 1000);
        }

        #[test]
        fn microseconds_are_read_exactly(seconds in 0..4_000_000_000i64, micros in 0..1_000_000i64) {
            let whole = Timestamp::from_micros(seconds * MICROS_PER_SECOND).to_string();
            let text = whole.replace(".000Z", &format!(".{micros:06}Z"));
            let time: Timestamp = text.parse().unwrap();
            prop_assert_eq!(time.as_micros(), seconds * MICROS_PER_SECOND + micros);
        }
    }
}
