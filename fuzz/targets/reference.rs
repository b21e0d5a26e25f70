//! Names of images. A name that is accepted reads back as itself.
#![no_main]

use beta9_types::ImageReference;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(reference) = ImageReference::parse(text) {
        let shown = reference.to_string();
        let again =
            ImageReference::parse(&shown).expect("a name that was accepted is refused as it is shown");
        assert_eq!(again, reference);
        assert_eq!(again.to_string(), shown);
    }
});
