//! Whether settings that are each allowed fit together.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::io::App;
use crate::settings::{self, KEYS};

use super::listen::{Listener, collide, dials_itself};
use super::words::full_name;
use super::{Layers, Mistakes};

impl Layers {
    /// Every word about a port must be about one we listen on.
    pub(super) fn check_ports(&self, mistakes: &mut Mistakes) {
        let _ = self.words_by_ports(mistakes);
    }

    /// Words about ports that are not served are taken away; in a pod they stop nothing.
    pub(super) fn drop_unserved_ports(&mut self, mistakes: &mut Mistakes) {
        let unserved = self.words_by_ports(mistakes);
        for layer in [&mut self.flags, &mut self.environment, &mut self.file] {
            layer.retain(|word| word.port.is_none_or(|port| !unserved.contains(&port)));
        }
    }

    /// The ports that words are about and that are not served.
    fn words_by_ports(&self, mistakes: &mut Mistakes) -> BTreeSet<u16> {
        let mut unserved = BTreeSet::new();
        let ours: Vec<u16> = self.listeners.iter().map(|l| l.listen.port()).collect();
        let captured = self.capture().map(|_| self.included());
        for word in [&self.live, &self.flags, &self.environment, &self.file].into_iter().flatten() {
            let known = |port: &u16| {
                ours.contains(port) || captured.as_ref().is_some_and(|set| set.contains(*port))
            };
            if let Some(port) = word.port.filter(|port| !known(port)) {
                let mut list: Vec<_> = ours.iter().map(u16::to_string).collect();
                list.extend(captured.as_ref().map(|set| format!("capture {set}")));
                let problem = format!("is about port {port}, but we listen on {}", list.join(", "));
                mistakes.add(word.name(), Some(&word.text), &word.origin, problem);
                unserved.insert(port);
            }
        }
        unserved
    }

    /// No two listeners on one address, and no application that is ourselves.
    pub(super) fn check_addresses(&self, mistakes: &mut Mistakes) {
        let mut ours: Vec<(&str, SocketAddr)> =
            self.listeners.iter().map(|l| ("listen", l.listen)).collect();
        ours.extend(self.capture().map(|address| ("capture", address)));
        ours.extend(["admin", "probe", "metrics"].map(|name| (name, self.address(name))));
        for (at, (name, address)) in ours.iter().enumerate() {
            if let Some((other, taken)) = ours[..at].iter().find(|o| collide(o.1, *address)) {
                let problem =
                    format!("collides with --{other} {taken}: each needs its own address");
                mistakes.add(*name, Some(&address.to_string()), "", problem);
            }
        }
        for listener in &self.listeners {
            let Listener { app_text, apps, origin, .. } = listener;
            let itself = |app: &App| match app {
                App::Tcp(app) => ours.iter().any(|(_, address)| dials_itself(*address, *app)),
                App::Unix(path) => *path == self.control(),
            };
            if apps.iter().any(itself) {
                mistakes.add(
                    "listen",
                    Some(app_text),
                    origin,
                    "is an address of this gateway: it would forward to itself",
                );
            }
        }
    }

    /// Enforcing needs something to enforce.
    pub(super) fn check_modes(&self, mistakes: &mut Mistakes) {
        let mut ports: Vec<_> = self.listeners.iter().map(|l| Some(l.listen.port())).collect();
        ports.extend(self.captured_by_name().into_iter().map(Some));
        for port in ports {
            let limited =
                ["limit", "per-client-limit"].iter().any(|k| self.count(k, port).is_some());
            if self.choice("mode", port) == Some("enforce") && !limited {
                let key = settings::find("mode").expect("in the table");
                let origin = self.word(key, port).map(|word| word.origin.to_string());
                mistakes.add(
                    full_name(key, port),
                    Some("enforce"),
                    origin.unwrap_or_default(),
                    "needs a `limit` or a `per-client-limit` to enforce",
                );
            }
        }
    }

    /// Settings that cannot change while the gateway runs, and would.
    pub(super) fn refuse_restarts(&self, changed: &Self, mistakes: &mut Mistakes) {
        for key in KEYS.iter().filter(|key| !key.live) {
            for port in self.ports_of(key) {
                if self.value(key.name, port) != changed.value(key.name, port) {
                    let word = changed.word(key, port);
                    let origin = word.map(|word| word.origin.to_string()).unwrap_or_default();
                    let text = word.map(|word| word.text.as_str());
                    mistakes.add(
                        full_name(key, port),
                        text,
                        origin,
                        "has changed, and needs a restart",
                    );
                }
            }
        }
    }
}
