//! What a DeepSpeed configuration says in vain is told in the log.

use std::sync::{Arc, Mutex};

use tensorswap::base::config::Config;
use tensorswap::base::observe::log::set_callback;

#[test]
fn keys_without_meaning_or_unknown_are_logged() {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&lines);
    let callback = move |level: u32, target: &str, line: &str| {
        assert_eq!(target, "tensorswap::config");
        kept.lock().unwrap().push(format!("{level} {line}"));
    };
    set_callback(Some(Box::new(callback)), 5).unwrap();

    let json = br#"{
        "train_batch_size": "auto",
        "queue_depth": 9,
        "aio": {"single_submit": true, "thread_count": 2, "intra_op_parallelism": 4, "blok_size": 1},
        "zero_optimization": {
            "offload_param": {"device": "nvme"},
            "offload_optimizer": {"buffer_size": 1e8}
        }
    }"#;
    Config::new().load_json(json).unwrap();
    set_callback(None, 0).unwrap();
    Config::new().load_json(json).unwrap();

    let nothing = "3 configuration key has no meaning here";
    assert_eq!(
        *lines.lock().unwrap(),
        [
            format!(
                "{nothing} key=queue_depth \
                 reason=\"a DeepSpeed configuration sets our keys in its own sections\""
            ),
            "4 configuration key is for others key=train_batch_size".to_owned(),
            "2 unknown configuration key key=aio.blok_size".to_owned(),
            format!("{nothing} key=aio.thread_count reason=\"another name of it is given\""),
            format!(
                "{nothing} key=aio.single_submit reason=\"operations are submitted in batches\""
            ),
            format!(
                "{nothing} key=zero_optimization.offload_param \
                 reason=\"parameters for the forward pass are not swapped here\""
            ),
            format!(
                "{nothing} key=zero_optimization.offload_optimizer.buffer_size \
                 reason=\"buffers are cut to each record from pinned_bytes\""
            ),
        ]
    );
}
