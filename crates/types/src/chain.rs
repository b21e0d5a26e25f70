use std::error::Error;

/// An error and its causes in one line, `what: why: why that`, the way it is shown to a user or logged.
///
/// Messages never repeat their source (they name it as the source), so nothing is said twice.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("open the door")]
    struct Outer(#[source] io::Error);

    #[test]
    fn causes_follow_in_order() {
        let error = Outer(io::Error::other("it is locked"));
        assert_eq!(super::chain(&error), "open the door: it is locked");
    }
}
