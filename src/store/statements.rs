//! The statements that writes are made of, in the words of each database.

use std::iter;

use sea_orm::{DbBackend, Statement, Value};

use super::job::NewMessage;
use super::{mysql, postgres, row, sqlite};
use crate::time::Timestamp;
use crate::words::MessageId;

/// An append and its place in the batch.
pub(super) type Append<'a> = (usize, &'a NewMessage);

/// A message to be deleted, and the place of the write in the batch.
pub(super) type Pair<'a> = (usize, &'a str, MessageId);

/// What a deleted row leaves.
pub(super) struct Mark {
    pub(super) key: String,
    pub(super) met_rule: Option<i32>,
    /// Microseconds since the Unix epoch.
    pub(super) until: i64,
}

/// How some rows are deleted.
pub(super) struct Deletion {
    /// Tells what is there, where the deletion itself can't.
    pub(super) find: Option<Statement>,
    pub(super) delete: Statement,
}

/// Writes statements of many rows. Each takes the first of the rows and says how many, at
/// least one if there is one.
pub(super) enum Statements {
    /// A row is a tuple of parameters.
    Rows { backend: DbBackend, words: &'static Words, texts: Vec<Text> },
    /// A column is a parameter (PostgreSQL): one text for any number of rows. This one is
    /// for a transaction that goes on after a conflict.
    Arrays { careful_insert: String },
}

impl Statements {
    pub(super) fn of(backend: DbBackend) -> Self {
        let words = match backend {
            DbBackend::Postgres => {
                let careful_insert = format!("{}{}", postgres::INSERT, postgres::UNLESS_KNOWN);
                return Statements::Arrays { careful_insert };
            }
            DbBackend::MySql => &mysql::WORDS,
            _ => &sqlite::WORDS,
        };
        let texts = Text::ROWS.map(|rows| Text::new(words, rows)).into();
        Statements::Rows { backend, words, texts }
    }

    /// Inserts rows. Only a conflict on the key may leave one out, and where that is an error,
    /// too, it is one of [`super::fault::Fault::Row`]. `careful`: conflicts are to be expected.
    pub(super) fn insert(
        &self,
        rows: &[Append<'_>],
        now: Timestamp,
        careful: bool,
    ) -> (Statement, usize) {
        match self {
            Statements::Rows { backend, texts, .. } => {
                let text = at_most(texts, rows.len());
                let rows = &rows[..text.rows.min(rows.len())];
                let values = rows.iter().flat_map(|(_, message)| row::values(message, now));
                (Statement::from_sql_and_values(*backend, &text.insert, values), rows.len())
            }
            Statements::Arrays { careful_insert } => {
                let text = if careful { careful_insert } else { postgres::INSERT };
                (arrays(text, postgres::insert_values(rows, now)), rows.len())
            }
        }
    }

    /// Writes marks, over those of the same keys.
    pub(super) fn mark(&self, marks: &[Mark]) -> (Statement, usize) {
        match self {
            Statements::Rows { backend, texts, .. } => {
                let text = at_most(texts, marks.len());
                let marks = &marks[..text.rows.min(marks.len())];
                let values = marks.iter().flat_map(|mark| -> [Value; 3] {
                    [mark.key.as_str().into(), mark.met_rule.into(), mark.until.into()]
                });
                (Statement::from_sql_and_values(*backend, &text.mark, values), marks.len())
            }
            Statements::Arrays { .. } => {
                (arrays(postgres::MARK, postgres::mark_values(marks)), marks.len())
            }
        }
    }

    /// Deletes messages, and tells of each that was there: recipient, id, key, met rule, time of
    /// the append.
    pub(super) fn delete(&self, pairs: &[Pair<'_>]) -> (Deletion, usize) {
        match self {
            Statements::Rows { backend, texts, .. } => {
                if let Some(done) = of_one(*backend, texts, pairs) {
                    return done;
                }
                let text = at_most(texts, pairs.len());
                let pairs = &pairs[..text.rows.min(pairs.len())];
                let statement = |text: &str| {
                    let values = pairs
                        .iter()
                        .flat_map(|(_, recipient, id)| [(*recipient).into(), id.0.into()]);
                    Statement::from_sql_and_values(*backend, text, values)
                };
                let find = text.find.as_deref().map(statement);
                (Deletion { find, delete: statement(&text.delete) }, pairs.len())
            }
            Statements::Arrays { .. } => {
                let delete = arrays(postgres::DELETE, postgres::pair_values(pairs));
                (Deletion { find: None, delete }, pairs.len())
            }
        }
    }

    /// Removes the marks that end from `first` to `last`.
    pub(super) fn purge_marks(&self, first: i64, last: i64) -> Statement {
        let values = [first.into(), last.into()];
        match self {
            Statements::Rows { backend, words, .. } => {
                Statement::from_sql_and_values(*backend, words.purge_marks, values)
            }
            Statements::Arrays { .. } => arrays(postgres::PURGE_MARKS, values),
        }
    }
}

/// Deletes the first messages if they are many of one recipient, where there are words for that.
fn of_one(backend: DbBackend, texts: &[Text], pairs: &[Pair<'_>]) -> Option<(Deletion, usize)> {
    let (_, recipient, _) = *pairs.first()?;
    let same = pairs.iter().take_while(|(_, other, _)| *other == recipient).count();
    let Text { rows, of_one: Some((find, delete)), .. } = at_most(texts, same) else {
        return None;
    };
    if *rows < MANY_OF_ONE {
        return None;
    }
    let statement = |text: &str| {
        let ids = pairs[..*rows].iter().map(|(_, _, id)| id.0.into());
        Statement::from_sql_and_values(backend, text, iter::once(recipient.into()).chain(ids))
    };
    let deletion = Deletion { find: Some(statement(find)), delete: statement(delete) };
    Some((deletion, *rows))
}

fn arrays(text: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, text, values)
}

/// What stands before and behind the tuples of a statement.
pub(super) type Frame = (&'static str, &'static str);

/// The words of a database whose statements have a tuple a row.
pub(super) struct Words {
    pub(super) insert: Frame,
    pub(super) mark: Frame,
    /// None: `delete` tells itself.
    pub(super) find: Option<Frame>,
    pub(super) delete: Frame,
    /// Other words for many rows of one recipient.
    pub(super) of_one: Option<OfOne>,
    /// Parameters: the first and the last time.
    pub(super) purge_marks: &'static str,
}

/// Words for rows of one recipient, who is the first parameter; the others are ids.
pub(super) struct OfOne {
    pub(super) find: Frame,
    pub(super) delete: Frame,
}

/// How many rows of one recipient are worth a statement of their own.
const MANY_OF_ONE: usize = 16;

/// Statements written out for a fixed number of rows. Their texts stay the same, so that the
/// database prepares each once; building them anew cost more than the insert.
pub(super) struct Text {
    rows: usize,
    insert: String,
    mark: String,
    find: Option<String>,
    delete: String,
    /// Finds, and deletes.
    of_one: Option<(String, String)>,
}

impl Text {
    /// Numbers of rows. Beyond the largest more rows a statement gain nothing; between them,
    /// few statements make up any number.
    const ROWS: [usize; 9] = [256, 128, 64, 32, 16, 8, 4, 2, 1];

    fn new(words: &Words, rows: usize) -> Self {
        let framed =
            |frame: Frame, columns| format!("{}{}{}", frame.0, tuples(rows, columns), frame.1);
        let list = |frame: Frame| format!("{}{}{}", frame.0, vec!["?"; rows].join(","), frame.1);
        Text {
            rows,
            insert: framed(words.insert, 13),
            mark: framed(words.mark, 3),
            find: words.find.map(|find| framed(find, 2)),
            delete: framed(words.delete, 2),
            of_one: words.of_one.as_ref().map(|one| (list(one.find), list(one.delete))),
        }
    }
}

/// The text for the most of `rows`.
fn at_most(texts: &[Text], rows: usize) -> &Text {
    let last = texts.len() - 1;
    texts.iter().find(|text| text.rows <= rows).unwrap_or(&texts[last])
}

fn tuples(rows: usize, columns: usize) -> String {
    let tuple = format!("({})", vec!["?"; columns].join(","));
    vec![tuple; rows].join(",")
}
