//! The configuration file. One that is accepted is shown as a file that means the same.
#![no_main]

use beta9_config::Config;

libfuzzer_sys::fuzz_target!(|text: &str| {
    match Config::parse(text, "worker.yaml", |_| None) {
        Ok(config) => {
            let shown = config.show_yaml();
            let again = Config::parse(&shown, "shown.yaml", |_| None).expect("what is shown is refused");
            assert_eq!(again.pools().len(), config.pools().len());
            assert_eq!(again.image_limit(), config.image_limit());
        }
        Err(error) => drop(error.render()),
    }
});
