use std::time::Duration;

use beta9_types::LogLimits;
use proptest::prelude::*;

use super::*;

#[test]
fn times_are_rfc_3339() {
    let at = |seconds| timestamp(UNIX_EPOCH + Duration::new(seconds, 5));
    assert_eq!(at(0), "1970-01-01T00:00:00.000000005Z");
    assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000005Z");
    assert_eq!(at(1_475_712_000 + 1029), "2016-10-06T00:17:09.000000005Z");
}

/// Small enough that a few appends rotate it; not a size that a user may ask for.
const TINY: LogLimits = LogLimits { max_size: 200, max_files: 3 };

/// Everything from a cursor, as the two streams.
fn collect(cursor: &mut Cursor, parser: &mut LogParser, got: &mut [Vec<u8>; 2]) {
    let mut buffer = [0; 37];
    loop {
        let count = cursor.read(&mut buffer).unwrap();
        if count == 0 {
            return;
        }
        for entry in parser.push(&buffer[..count]) {
            got[usize::from(entry.stream == Stream::Stderr)].extend(entry.content);
        }
    }
}

fn files(directory: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_oldest_files_go_and_a_reader_that_is_in_them_reads_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = LogWriter::create(&directory.path().join("log"), TINY).unwrap();
    let mut first = writer.oldest();
    for number in 0..100 {
        writer.append(Stream::Stdout, format!("line {number}\n").as_bytes()).unwrap();
    }
    assert_eq!(files(directory.path()).len(), 3);
    let (mut parser, mut got) = (LogParser::at(0), [Vec::new(), Vec::new()]);
    collect(&mut first, &mut parser, &mut got);
    let whole: String = (0..100).map(|number| format!("line {number}\n")).collect();
    assert_eq!(String::from_utf8(got[0].clone()).unwrap(), whole);
    assert_eq!(first.position(), writer.length());

    // What is kept is the end, from the beginning of an entry.
    let mut kept = writer.oldest();
    let (mut parser, mut got) = (LogParser::at(kept.position()), [Vec::new(), Vec::new()]);
    collect(&mut kept, &mut parser, &mut got);
    let got = String::from_utf8(got[0].clone()).unwrap();
    assert!(whole.ends_with(&got) && got.starts_with("line ") && got.lines().count() < 20, "{got}");
}

#[test]
fn files_without_their_writer_are_the_same_log() {
    for limits in [TINY, LogLimits { max_files: 1, ..TINY }] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut writer = LogWriter::create(&path, limits).unwrap();
        for number in 0..50 {
            writer.append(Stream::Stderr, format!("line {number}\n").as_bytes()).unwrap();
        }
        let (mut cursor, end) = (writer.oldest(), writer.length());
        let start = cursor.position();
        let mut expected = vec![0; usize::try_from(end - start).unwrap()];
        let mut filled = 0;
        while filled < expected.len() {
            filled += cursor.read(&mut expected[filled..]).unwrap();
        }
        drop(writer);
        let mut files = LogFiles::open(&path, 0).unwrap();
        assert_eq!(files.position(), start);
        let mut read = Vec::new();
        let mut buffer = [0; 77];
        while let count @ 1.. = files.read(&mut buffer).unwrap() {
            read.extend_from_slice(&buffer[..count]);
        }
        assert_eq!(read, expected);
        assert_eq!(files.position(), end);
        // From the middle.
        let mut files = LogFiles::open(&path, end - 10).unwrap();
        assert_eq!(files.read(&mut [0; 100]).unwrap(), 10);
    }
}

#[test]
fn a_long_chain_of_files_is_let_go_without_deep_recursion() {
    let directory = tempfile::tempdir().unwrap();
    let limits = LogLimits { max_size: 1, max_files: 1 };
    let mut writer = LogWriter::create(&directory.path().join("log"), limits).unwrap();
    let first = writer.oldest();
    for _ in 0..300 {
        writer.append(Stream::Stdout, b"x\n").unwrap();
    }
    assert_eq!(writer.files_behind(&first), 299);
    drop(first);
}

#[test]
fn a_cleared_log_is_empty() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = LogWriter::create(&directory.path().join("log"), TINY).unwrap();
    let mut reader = writer.oldest();
    writer.append(Stream::Stdout, b"not the container's words").unwrap();
    writer.clear().unwrap();
    assert_eq!(reader.read(&mut [0; 10]).unwrap(), 0);
    assert_eq!(writer.length(), 0);
}

proptest! {
    #[test]
    fn every_byte_comes_back(chunks in proptest::collection::vec(
        (any::<bool>(), any::<bool>(), proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..50)), 0..40)
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::create(&directory.path().join("log"), TINY).unwrap();
        let (mut cursor, mut parser) = (writer.oldest(), LogParser::at(0));
        let (mut sent, mut got) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for (is_stderr, reads, data) in chunks {
            let stream = if is_stderr { Stream::Stderr } else { Stream::Stdout };
            writer.append(stream, &data).unwrap();
            sent[usize::from(is_stderr)].extend(data);
            if reads {
                collect(&mut cursor, &mut parser, &mut got);
            }
        }
        collect(&mut cursor, &mut parser, &mut got);
        prop_assert_eq!(sent, got);
    }

    #[test]
    fn the_parser_never_panics(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..20)) {
        let mut parser = LogParser::at(0);
        let total: usize = pieces.iter().map(Vec::len).sum();
        for piece in &pieces {
            parser.push(piece);
        }
        prop_assert!(parser.position() <= total as u64);
    }
}
