//! Edits TOML, for all engines that have it.

use anyhow::{Result, anyhow};
use toml_edit::{DocumentMut, Item, Table, TableLike};

/// Parses a document for editing. The error is one line, and says where.
pub(super) fn document(text: &str) -> Result<DocumentMut> {
    text.parse().map_err(|error: toml_edit::TomlError| {
        let line = error
            .span()
            .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        anyhow!("it is not TOML: line {line}: {}", error.message())
    })
}

/// The item at the end of a path of keys.
pub(super) fn find<'a>(table: &'a dyn TableLike, path: &[&str]) -> Option<&'a Item> {
    let (first, rest) = path.split_first()?;
    let item = table.get(first)?;
    if rest.is_empty() {
        return Some(item);
    }
    find(item.as_table_like()?, rest)
}

/// The table at the end of a path of keys. It is made if it is missing; tables on the way get no
/// header of their own.
///
/// # Errors
/// Something on the way is not a table.
pub(super) fn table_at<'a>(
    table: &'a mut dyn TableLike,
    path: &[&str],
) -> Result<&'a mut dyn TableLike> {
    let Some((first, rest)) = path.split_first() else {
        return Ok(table);
    };
    let item = table.entry(first).or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    let inner = item
        .as_table_like_mut()
        .ok_or_else(|| anyhow!("{first} is not a table"))?;
    table_at(inner, rest)
}

/// Removes the entry at the end of a path of keys, and tables on the way that have no header and
/// are empty then. `false` if there is no such entry.
pub(super) fn remove(table: &mut dyn TableLike, path: &[&str]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return false;
    };
    if rest.is_empty() {
        return table.remove(first).is_some();
    }
    let Some(inner) = table.get_mut(first).and_then(Item::as_table_like_mut) else {
        return false;
    };
    let removed = remove(inner, rest);
    let is_left_over = |item: &Item| {
        item.as_table()
            .is_some_and(|t| t.is_implicit() && t.is_empty())
    };
    if removed && table.get(first).is_some_and(is_left_over) {
        table.remove(first);
    }
    removed
}
