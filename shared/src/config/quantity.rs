//! Sizes and times in files: always a text with its unit, never a bare number.

use std::time::Duration;

use super::read::{At, Report};
use crate::units::{Bytes, parse_duration};

/// The longest time that a file may ask for; longer ones are slips of the pen, and sums of them
/// would overflow clocks.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// A time, zero allowed.
pub(super) fn duration(at: &At<'_>, report: &mut Report) -> Option<Duration> {
    let value = at.parsed(
        report,
        "a time with its unit, for example 500ms, 10s or 2m",
        parse_duration,
    )?;
    if value > LONGEST {
        report.problem(
            &at.place,
            "the time is longer than a year",
            "write a shorter time",
        );
        return None;
    }
    Some(value)
}

/// A time greater than zero.
pub(super) fn positive_duration(at: &At<'_>, report: &mut Report) -> Option<Duration> {
    let value = duration(at, report)?;
    if value.is_zero() {
        report.problem(
            &at.place,
            "the time must be greater than zero",
            "write for example 10s",
        );
        return None;
    }
    Some(value)
}

/// A size greater than zero.
pub(super) fn size(at: &At<'_>, report: &mut Report, what: &str) -> Option<Bytes> {
    let rule = "a text with a number and a unit, for example \"512M\" or \"20G\"";
    let text = at.text(report, rule)?;
    match Bytes::parse(text) {
        Ok(Bytes(0)) => {
            report.problem(
                &at.place,
                format!("{what} must be greater than zero"),
                format!("write {rule}"),
            );
            None
        }
        Ok(size) => Some(size),
        Err(error) => {
            report.problem(
                &at.place,
                format!("{what} cannot be parsed: {error}"),
                format!("write {rule}"),
            );
            None
        }
    }
}
