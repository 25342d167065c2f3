//! The route table on its way: always whole, in the older of the two sides' forms, whatever lies
//! on disk. A table that cannot be read is a refusal, never an empty one.

use serde_json::Error;

use crate::saved::{FORM, Saved, SavedError};
use crate::table::RouteTable;

/// A table that cannot go over.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// This version writes no such form any more.
    #[error("form {0} of the routes is too old for this version to write")]
    Form(u32),
    /// Not JSON of such a table.
    #[error("the routes cannot be read or written")]
    Json(#[from] Error),
    /// Not a table.
    #[error("the routes are not those of this version")]
    Saved(#[from] SavedError),
}

/// The bytes of a table in a form.
///
/// # Errors
/// [`TableError::Form`] when this version does not write that one.
pub fn table_bytes(table: &RouteTable, form: u32) -> Result<Vec<u8>, TableError> {
    if form == FORM {
        Ok(serde_json::to_vec(&Saved::from(table))?)
    } else {
        Err(TableError::Form(form))
    }
}

/// The table of these bytes.
///
/// # Errors
/// [`TableError`].
pub fn table_of(bytes: &[u8]) -> Result<RouteTable, TableError> {
    let saved: Saved = serde_json::from_slice(bytes)?;
    Ok(RouteTable::try_from(saved)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_over_and_nonsense_is_refused() {
        let table = RouteTable::default();
        let bytes = table_bytes(&table, FORM).unwrap();
        assert_eq!(table_of(&bytes).unwrap(), table);
        assert!(matches!(table_bytes(&table, 0), Err(TableError::Form(0))));
        assert!(table_of(b"{}").is_err() && table_of(b"").is_err());
    }
}
