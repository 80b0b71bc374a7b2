//! A process that has its own global `tracing` subscriber keeps it.

use tensorswap::base::error::Error;
use tensorswap::base::observe::log::set_callback;
use tracing::subscriber::NoSubscriber;

#[test]
fn the_log_is_refused_where_another_subscriber_is_global() {
    tracing::subscriber::set_global_default(NoSubscriber::new()).unwrap();
    // Nothing to install: nothing to refuse.
    assert_eq!(set_callback(None, 0), Ok(()));
    for _ in 0..2 {
        let error = set_callback(Some(Box::new(|_, _, _| {})), 3).unwrap_err();
        assert!(matches!(&error, Error::Busy(message) if message.contains("subscriber")));
    }
}
