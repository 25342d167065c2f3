//! Quantities with their unit in the type, read and written as people write them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuantity {
    /// Not a size.
    #[error("{0:?} is not a size: write for example 512MiB or 20GiB")]
    Size(String),
    /// Not a duration.
    #[error("{0:?} is not a duration: write for example 300ms, 10s or 2m")]
    Duration(String),
}

/// A number of bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Reads `20GiB`, `64M`, `1.5G`, `512k`, `100`: digits, at most one fraction, and a unit that
    /// is a power of 1024 (`K`, `M`, `G`, `T`, with or without `iB`, in either case; none means
    /// bytes). A fraction of a byte rounds up, as in the files that Flocker read. No sign, no
    /// exponent, no space; no `GB`, which is a power of 1000 to some and of 1024 to others.
    ///
    /// # Errors
    /// [`InvalidQuantity::Size`] when the text has another form or does not fit 64 bits.
    pub fn parse(text: &str) -> Result<Self, InvalidQuantity> {
        Self::parse_exact(text).ok_or_else(|| InvalidQuantity::Size(text.to_owned()))
    }

    fn parse_exact(text: &str) -> Option<Self> {
        let (whole, rest) = split_digits(text);
        let (fraction, unit) = rest.strip_prefix('.').map_or(("", rest), split_digits);
        // More digits than that tell nothing about bytes, and the product below would overflow.
        if fraction.len() > 20 {
            return None;
        }
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return None,
        };
        let unit: u128 = 1 << shift;
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        let part: u128 = if fraction.is_empty() {
            0
        } else {
            fraction.parse().ok()?
        };
        let whole = u128::from(whole.parse::<u64>().ok()?);
        let bytes = whole
            .checked_mul(unit)?
            .checked_add(part.checked_mul(unit)?.div_ceil(scale))?;
        u64::try_from(bytes).ok().map(Self)
    }

    /// The sum, at most the largest value.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Bytes {
    /// Three significant digits and a binary unit: `1.46 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [
            (1 << 40, "TiB"),
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
        ];
        for (size, unit) in UNITS {
            if self.0 >= size {
                let hundredths = u128::from(self.0) * 100 / u128::from(size);
                let (whole, rest) = (hundredths / 100, hundredths % 100);
                return match whole {
                    0..10 => write!(f, "{whole}.{rest:02} {unit}"),
                    10..100 => write!(f, "{whole}.{} {unit}", rest / 10),
                    _ => write!(f, "{whole} {unit}"),
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// The leading ASCII digits, and what follows them.
fn split_digits(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

/// Reads `300ms`, `10s`, `1m30s`. A bare number is refused: a time needs its unit.
///
/// # Errors
/// [`InvalidQuantity::Duration`] when the text has another form.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidQuantity> {
    humantime::parse_duration(text).map_err(|_| InvalidQuantity::Duration(text.to_owned()))
}

/// For `#[serde(with = "seconds")]`: a duration as a number of seconds in JSON.
pub mod seconds {
    use super::{Deserialize, Deserializer, Duration, Serializer};

    /// Writes seconds with a fraction.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(value.as_secs_f64())
    }

    /// Reads seconds.
    ///
    /// # Errors
    /// When the number is negative or too large, and those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        let value = f64::deserialize(d)?;
        Duration::try_from_secs_f64(value).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, want) in [
            ("0", 0),
            ("7", 7),
            ("2K", 2048),
            ("500m", 500 << 20),
            ("1MiB", 1 << 20),
            ("3g", 3 << 30),
        ] {
            assert_eq!(Bytes::parse(text), Ok(Bytes(want)), "{text}");
        }
        for same in ["1T", "1024G", "1048576M", "1073741824K", "1TiB"] {
            assert_eq!(Bytes::parse(same), Ok(Bytes(1 << 40)), "{same}");
        }
    }

    #[test]
    fn fractions_of_a_byte_round_up() {
        for (text, want) in [
            ("2.1M", 2_202_010),
            ("1.5G", 1_610_612_736),
            ("1.", 1),
            ("1.5", 2),
            ("1.0", 1),
            ("0.0001K", 1),
            ("0.00000000000000000001T", 1),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(Bytes::parse(text), Ok(Bytes(want)), "{text}");
        }
        let rounds_up_to_2_to_the_64 = "16777215.99999999999999999999T";
        assert!(Bytes::parse(rounds_up_to_2_to_the_64).is_err());
    }

    #[test]
    fn other_forms_of_sizes_are_refused() {
        for bad in [
            "",
            "G",
            "-1G",
            "+1G",
            "1e3",
            "1 G",
            "1X",
            "99999999999G",
            "1GB",
            "1B",
            ".5G",
            "1..5",
            "1.5.",
            "abc",
            " 1",
            "1\n",
            "١",
            "0.000000000000000000001T",
        ] {
            assert!(Bytes::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_print_three_digits() {
        for (bytes, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.50 KiB"),
            (45 << 20, "45.0 MiB"),
            (300 << 30, "300 GiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), want);
        }
    }

    #[test]
    fn a_duration_needs_its_unit() {
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert!(parse_duration("10").is_err());
        assert!(parse_duration("-1s").is_err());
    }
}
