//! T33: how a watch goes in a cluster where nothing is wrong: the API server ends it every few minutes, and the
//! next one goes on from the last word of the one before.

use std::time::Duration;

use super::{APPLIED, annotated, is_watched, served, until_limit, watched};
use crate::support::apiserver::ApiServer;
use crate::support::oracle::{Oracle, Script};
use crate::support::{Engine, SOON, run_beside, scale, slack, until};

/// For the soak alone: a watch that ends sooner than after 30 s is no good one. In short, the unit test of
/// `src/cluster/pod.rs` plays the server.
#[test]
fn a_watch_whose_time_is_up_goes_on_from_the_last_bookmark() {
    if scale(0, 1) == 0 {
        return;
    }
    run_beside(Engine::Epoll, |engine| {
        let oracle = Oracle::start(Script::Work);
        let api = ApiServer::start();
        if api.is_real() {
            return;
        }
        let gateway = watched(engine, oracle.address, &api).start();
        until("it is watched", SOON, || is_watched(&gateway));
        for limit in [4, 5] {
            std::thread::sleep(Duration::from_secs(31)); // the time that a watch has
            let (lists, watches) = api.asked();
            let far = api.end_watches(&annotated(&[("limit", &limit.to_string())]));
            until_limit(&gateway, Some(limit), slack(APPLIED));
            assert_eq!(api.asked(), (lists, watches + 1), "nothing is listed anew");
            assert_eq!(api.resumed(), Some(far), "and nothing is heard twice");
            assert!(is_watched(&gateway));
        }
        served(&gateway, 20);
        assert!(!gateway.log().contains("not watched"), "{}", gateway.log());
        assert_eq!(api.breaches(), Vec::<String>::new());
    });
}
