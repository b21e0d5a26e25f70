use std::fmt::{self, Display, Write};
use std::io;
use std::path::Path;

/// The result of reading configuration.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of mistake it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file cannot be read.
    Unreadable,
    /// The file is larger, nests deeper or expands further than a configuration file has reason to.
    TooLarge,
    /// The file is not YAML.
    Syntax,
    /// A key that does not exist there.
    UnknownKey,
    /// A key that is given twice, or in both spellings.
    DuplicateKey,
    /// A value of another type than the key takes.
    WrongType,
    /// A value of the right type that is not allowed.
    InvalidValue,
    /// A pool that the configuration does not have.
    UnknownPool,
}

/// A place in the file; line and column count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
    /// How many characters the offending part has; 0 where unknown.
    pub length: u32,
}

/// Configuration that cannot be used.
///
/// `Display` is one line: where, what is wrong, what was probably meant, what is allowed. [`Error::render`] adds the
/// offending line for a terminal.
#[derive(Debug)]
pub struct Error(Box<Details>);

#[derive(Debug)]
struct Details {
    kind: ErrorKind,
    /// The file or the variable, as a message starts with it.
    origin: String,
    position: Option<Position>,
    message: String,
    /// What to do instead, in a few words.
    hint: Option<String>,
    allowed: Vec<String>,
    /// The text of the line at `position`.
    excerpt: Option<String>,
    source: Option<io::Error>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, origin: impl Display, message: impl Into<String>) -> Self {
        Self(Box::new(Details {
            kind,
            origin: origin.to_string(),
            position: None,
            message: message.into(),
            hint: None,
            allowed: Vec::new(),
            excerpt: None,
            source: None,
        }))
    }

    pub(crate) fn unreadable(path: &Path, source: io::Error) -> Self {
        let origin = format!("config {}", path.display());
        let mut error = Self::new(ErrorKind::Unreadable, origin, "cannot read the file");
        error.0.source = Some(source);
        error
    }

    pub(crate) fn at(mut self, position: Position, text: &str) -> Self {
        self.0.position = Some(position);
        let line = usize::try_from(position.line).ok().and_then(|line| line.checked_sub(1));
        self.0.excerpt = line.and_then(|line| text.lines().nth(line)).map(str::to_owned);
        self
    }

    pub(crate) fn hint(mut self, hint: Option<String>) -> Self {
        self.0.hint = hint;
        self
    }

    pub(crate) fn allowed<S: ToString>(mut self, allowed: impl IntoIterator<Item = S>) -> Self {
        self.0.allowed = allowed.into_iter().map(|word| word.to_string()).collect();
        self
    }

    /// What kind of mistake it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Where in the file, if it is about a place in a file.
    pub fn position(&self) -> Option<Position> {
        self.0.position
    }

    /// The message, and below it the offending line with a mark under the offending part.
    pub fn render(&self) -> String {
        let mut text = self.to_string();
        if let (Some(position), Some(line)) = (self.0.position, &self.0.excerpt) {
            push_excerpt(&mut text, position, line);
        }
        text
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let details = &self.0;
        f.write_str(&details.origin)?;
        if let Some(position) = details.position {
            write!(f, ":{}:{}", position.line, position.column)?;
        }
        write!(f, ": {}", details.message)?;
        if let Some(hint) = &details.hint {
            write!(f, "; {hint}")?;
        }
        if !details.allowed.is_empty() {
            let mark = if details.hint.as_ref().is_some_and(|hint| hint.ends_with('?')) { "" } else { ";" };
            write!(f, "{mark} allowed: {}", details.allowed.join(", "))?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}

/// Widest excerpt, in characters; a longer line is cut around the mark.
const EXCERPT: usize = 100;

fn push_excerpt(text: &mut String, position: Position, line: &str) {
    let column = (position.column as usize).saturating_sub(1);
    let skipped = if column + 1 > EXCERPT { column - EXCERPT / 2 } else { 0 };
    // One character stays one column: the mark must stand under its target, and nothing may drive the terminal.
    let visible = |c: char| {
        if c == '\t' {
            ' '
        } else if c.is_control() {
            '\u{fffd}'
        } else {
            c
        }
    };
    let shown: String = line.chars().skip(skipped).take(EXCERPT).map(visible).collect();
    let column = column - skipped;
    let room = shown.chars().count().saturating_sub(column).max(1);
    let mark = "^".repeat((position.length as usize).clamp(1, room));
    let number = position.line.to_string();
    let gutter = " ".repeat(number.len());
    // Writing to a String does not fail.
    let _ = write!(text, "\n{gutter} |\n{number} | {shown}\n{gutter} | {}{mark}", " ".repeat(column));
}

/// A value from the file as a message repeats it.
pub(crate) fn quoted(value: &str) -> String {
    const SHOWN: usize = 80;
    if value.chars().count() <= SHOWN {
        return format!("{value:?}");
    }
    let start: String = value.chars().take(SHOWN).collect();
    format!("{start:?}…")
}
