//! Any bytes as a configuration, ours or DeepSpeed's: taken or refused as a whole, and what was taken is
//! legal, is within its bounds, and stands for itself in its normal form.
#![no_main]

use tensorswap::base::config::{Config, EngineOptions, Kind, OptimizerOptions, keys};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut config = Config::new();
    if config.load_json(bytes).is_err() {
        assert_eq!(config, Config::new());
        return;
    }
    for key in keys() {
        let text = config.get(key.name).expect("a key in the table");
        let mut again = config.clone();
        again
            .set(key.name, &text)
            .expect("a value in its normal form");
        assert_eq!(again.get(key.name), Some(text));
        if let Kind::Size(bounds) | Kind::Count(bounds) = key.kind {
            let number = config.number(key.name).expect("a number");
            let is_auto = number == 0 && bounds.zero_is_auto;
            assert!(is_auto || (bounds.min..=bounds.max).contains(&number));
        }
    }
    // What does not go together is refused here; nothing else may come of it.
    let _ = EngineOptions::from_config(&config);
    let _ = OptimizerOptions::from_config(&config);
});
