//! Tables for people: columns as wide as their widest cell, nothing else.

use std::fmt;

/// A table under construction.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// What is shown instead of a table without rows.
    empty: &'static str,
}

impl Table {
    pub(super) fn new(heads: &[&str], empty: &'static str) -> Self {
        Self { rows: vec![heads.iter().map(|head| (*head).to_owned()).collect()], empty }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.len() == 1 {
            return f.write_str(self.empty);
        }
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (at, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            write!(f, "{}{}", if at == 0 { "" } else { "\n" }, line.trim_end())?;
        }
        Ok(())
    }
}

/// Items in one cell.
pub(super) fn joined<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "-".to_owned() } else { items.join(",") }
}

/// A time in one cell, to the second.
pub(super) fn moment(wall: crate::time::Wall) -> String {
    format!("{wall:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["ID", "NAME"], "nothing");
        assert_eq!(table.to_string(), "nothing");
        table.row(["1".to_owned(), "größe".to_owned()]);
        table.row(["100".to_owned(), "x".to_owned()]);
        assert_eq!(table.to_string(), "ID   NAME\n1    größe\n100  x");
    }
}
