//! What an unquoted scalar is, by YAML's core schema, with YAML 1.1 in view.

use super::Value;

/// Types an unquoted scalar.
pub(super) fn resolve(text: String) -> Value {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        "<<" => Value::Merge,
        "yes" | "Yes" | "YES" | "no" | "No" | "NO" | "on" | "On" | "ON" | "off" | "Off" | "OFF" => {
            Value::Ambiguous(text)
        }
        other if is_ambiguous_number(other) => Value::Ambiguous(text),
        other => match integer(other) {
            Some(number) => Value::Int(number, text),
            None if is_float(other) => Value::Float(text),
            None => Value::Text(text),
        },
    }
}

fn unsigned(text: &str) -> &str {
    text.strip_prefix(['-', '+']).unwrap_or(text)
}

fn all_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// A whole number that fits: decimal, `0o17` or `0x1f`.
fn integer(text: &str) -> Option<i128> {
    if let Some(octal) = text.strip_prefix("0o") {
        return based(octal, 8);
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return based(hex, 16);
    }
    if all_digits(unsigned(text)) {
        text.parse().ok()
    } else {
        None
    }
}

fn based(digits: &str, radix: u32) -> Option<i128> {
    // `from_str_radix` would take a sign here.
    if digits.starts_with(['-', '+']) {
        None
    } else {
        i128::from_str_radix(digits, radix).ok()
    }
}

/// Numbers of YAML 1.1 that are texts in 1.2 or have another value there: base sixty (`22:22`),
/// leading zeros (octal), underscores and binary.
fn is_ambiguous_number(text: &str) -> bool {
    let digits = unsigned(text);
    let base_sixty = digits.contains(':') && {
        let mut parts = digits.split(':');
        parts.next().is_some_and(|first| {
            first.starts_with(|c: char| ('1'..='9').contains(&c))
                && first.bytes().all(|b| b.is_ascii_digit() || b == b'_')
        }) && parts.all(|part| {
            all_digits(part) && part.len() <= 2 && part.parse::<u8>().is_ok_and(|n| n < 60)
        })
    };
    let leading_zero = digits.len() > 1 && digits.starts_with('0') && all_digits(digits);
    let underscores = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.contains('_')
        && digits.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let binary = digits
        .strip_prefix("0b")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b"01_".contains(&b)));
    base_sixty || leading_zero || underscores || binary
}

fn is_float(text: &str) -> bool {
    let rest = unsigned(text);
    if matches!(rest, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (rest, None),
    };
    let digits = match mantissa.split_once('.') {
        Some((whole, fraction)) => {
            (whole.is_empty() || all_digits(whole))
                && (fraction.is_empty() || all_digits(fraction))
                && mantissa.len() > 1
        }
        None => all_digits(mantissa),
    };
    digits && exponent.is_none_or(|e| all_digits(unsigned(e)))
}
