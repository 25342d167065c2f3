//! What people read: pure functions from the API's values to text. Nothing here prints, asks
//! the time or knows whether a terminal listens.

pub(crate) mod connections;
pub(crate) mod gc;
pub(crate) mod migration;
pub(crate) mod plan;
pub(crate) mod status;
mod table;

pub(crate) use table::table;

/// What stands in a column where there is nothing to say.
const NOTHING: &str = "-";

/// A time as people say it: `420 ms`, `1.42 s`, `2 min 05 s`.
pub(crate) fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return NOTHING.to_owned();
    }
    if value < 0.9995 {
        format!("{:.0} ms", value * 1000.0)
    } else if value < 99.995 {
        format!("{value:.2} s")
    } else {
        let whole = value.round();
        let minutes = (whole / 60.0).floor();
        format!("{minutes:.0} min {:02.0} s", whole - minutes * 60.0)
    }
}

/// A number with its noun: `1 migration`, `3 migrations`.
pub(crate) fn count(number: impl TryInto<u64>, noun: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// The text of a value that may be absent.
fn or_nothing<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), ToString::to_string)
}

#[cfg(test)]
pub(crate) mod sample;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_people_say_them() {
        for (value, want) in [
            (0.0, "0 ms"),
            (0.4204, "420 ms"),
            (0.9999, "1.00 s"),
            (1.424, "1.42 s"),
            (99.9, "99.90 s"),
            (119.7, "2 min 00 s"),
            (125.2, "2 min 05 s"),
            (f64::NAN, "-"),
            (-1.0, "-"),
        ] {
            assert_eq!(seconds(value), want, "{value}");
        }
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(count(1_u64, "migration"), "1 migration");
        assert_eq!(count(0_usize, "migration"), "0 migrations");
    }
}
