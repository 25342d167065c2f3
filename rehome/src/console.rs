//! The only place that prints. Results go to standard output, as text or as one JSON document;
//! progress and errors go to standard error, so that a pipe sees only results.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this module is the command's voice"
)]

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use serde::Serialize;

/// Takes everything off a terminal and begins at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// How this run of the command speaks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Console {
    json: bool,
}

impl Console {
    /// A console that prints JSON documents, or text.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether the result is to be a document.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    #[expect(clippy::unused_self, reason = "what speaks is the console")]
    /// Progress, for the person who waits.
    pub(crate) fn progress(self, text: &str) {
        eprintln!("{text}");
    }

    /// A line of the result, when the result is text.
    pub(crate) fn line(self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    /// The result as it is now, in the place of what it was: on a terminal alone on it, elsewhere
    /// below the last; or a document.
    pub(crate) fn page(self, text: &str, value: &impl Serialize) {
        let clear = if io::stdout().is_terminal() {
            CLEAR
        } else {
            ""
        };
        self.line(&format!("{clear}{text}"));
        if let Err(error) = self.document(value) {
            self.error(&error);
        }
    }

    /// The result as a document, when the user asked for JSON.
    pub(crate) fn document(self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(value)?);
        }
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "what speaks is the console")]
    /// An error with its causes, from the outermost inwards.
    pub(crate) fn error(self, error: &anyhow::Error) {
        eprintln!("rehome: {error}");
        for cause in error.chain().skip(1) {
            eprintln!("  because: {cause}");
        }
    }
}

/// Prints help or an error of the command line; 0 for help, 2 for an error.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Printing can only fail when the terminal is gone, and then nobody reads the text.
    drop(error.print());
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}
