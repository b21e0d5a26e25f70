//! Setting up logging for a whole process, which needs a process of its own.

use beta9_logging::{Error, Format, init};
use tracing::Level;

#[test]
fn a_second_setup_is_refused_and_the_first_stays() {
    assert!(init(Format::Json, Level::INFO).is_ok());
    assert!(matches!(init(Format::Text, Level::TRACE), Err(Error::AlreadySet(_))));
    assert!(tracing::enabled!(target: "beta9_worker", Level::INFO));
    assert!(!tracing::enabled!(target: "beta9_worker", Level::DEBUG));
    assert!(!tracing::enabled!(target: "hyper", Level::INFO));
}
