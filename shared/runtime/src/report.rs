//! An error and its causes on one line: errors say only their own level, this prints the chain.

use std::error::Error;
use std::fmt;

/// Prints an error followed by its causes, `: ` between them.
///
/// ```
/// # use rehome_runtime::report::Report;
/// let cause = std::io::Error::other("disk full");
/// assert_eq!(Report(&cause).to_string(), "disk full");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Report<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries repeat their cause in their own text; once is enough.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
                last = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot save the routes")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_follow_their_effect() {
        let error = Outer(std::io::Error::other("disk full"));
        assert_eq!(
            Report(&error).to_string(),
            "cannot save the routes: disk full"
        );
    }

    #[test]
    fn a_cause_that_is_already_in_the_text_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: {0}")]
        struct Embeds(#[source] std::io::Error);
        let error = Embeds(std::io::Error::other("inner"));
        assert_eq!(Report(&error).to_string(), "outer: inner");
    }
}
