//! From an error to the exit status: 2 when the command line, a file or a name in it is wrong,
//! else 1.

use std::process::ExitCode;

use crate::client::CallError;

/// The exit status of wrong input.
pub(crate) const WRONG: u8 = 2;

/// Something that the user named is not there or has the wrong form.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongInput(pub(crate) String);

/// The exit status of a command that ended with an error.
pub(crate) fn status_of(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(number_of(error))
}

fn number_of(error: &anyhow::Error) -> u8 {
    let wrong = error.is::<WrongInput>()
        || error
            .downcast_ref::<CallError>()
            .is_some_and(CallError::blames_the_input);
    if wrong { WRONG } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_input_is_told_from_failure() {
        assert_eq!(number_of(&WrongInput("no such host".to_owned()).into()), 2);
        assert_eq!(number_of(&anyhow::anyhow!("disk full")), 1);
    }
}
