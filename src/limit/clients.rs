//! How much each client has active and queued, and whether one more is too much.
//!
//! Counted also while no cap is set, so that a cap switched on live covers what is already there.
//!
//! Always true: a client is in the census exactly while something of it is active or queued, so the
//! census is no larger than what the gate holds. Checking and counting happen under one lock, so two
//! arrivals cannot both be the last allowed.

use super::sync::{AtomicU64, Mutex, Ordering, lock};
use super::{Mode, Settings};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::IpAddr;

/// Enough that the few worker threads a sidecar has seldom meet on one lock.
const SHARDS: usize = 16;

/// An empty shard keeps room for this many addresses; what a flood made it grow to is given back.
const KEPT: usize = 256;

/// Set in the rule while an arrival beyond the cap is refused, and not only noted.
const REFUSES: u64 = 1 << 32;

/// Whom an arrival is counted for: an address (IPv4 and IPv4 mapped into IPv6 are the same client), or
/// a name. In halves, because a `u128` would be aligned to 16 bytes and every connection holds one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client([u64; 2]);

/// Whether an arrival was counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Census {
    /// Counted, and within the cap.
    Within,
    /// Counted, though a cap in force would refuse it.
    Beyond,
    /// Not counted: the client has as much as one client may have.
    Refused,
}

/// The secret two halves of an address are mixed with before they are multiplied; drawn anew for each
/// map. With the standard hash an arrival costs a third more. What this gives up against it matters to
/// strings of any length; here it is sixteen bytes, in a map no larger than what the gate holds, by
/// somebody who never sees a hash.
#[derive(Clone, Copy)]
struct Key(u64, u64);

/// The hash of one address.
struct Fold {
    key: Key,
    hash: u64,
}

type Shard = HashMap<Client, u32, Key>;

/// The census of one gate.
pub(super) struct Clients {
    /// The cap (0: none) in the low half, and REFUSES. One word, so that no arrival sees the cap of
    /// one setting under the mode of another.
    rule: AtomicU64,
    shards: [Mutex<Shard>; SHARDS],
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        let v6 = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let bits = v6.to_bits();
        Self([(bits >> 64) as u64, bits as u64])
    }
}

impl Client {
    /// The client of this name, in whatever bytes. Only a hash of it is kept: 128 bits with a key
    /// drawn at start-up, so that two names, or a name and an address, are not the same by accident,
    /// nor by somebody's design.
    pub fn named(name: &[u8]) -> Self {
        use std::sync::LazyLock;
        static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);
        Self([0, 1].map(|half: usize| KEYS[half].hash_one(name)))
    }
}

impl Hash for Client {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [high, low] = self.0;
        state.write_u128(u128::from(high) << 64 | u128::from(low));
    }
}

impl Default for Key {
    fn default() -> Self {
        let random = RandomState::new();
        Self(random.hash_one(0), random.hash_one(1))
    }
}

impl BuildHasher for Key {
    type Hasher = Fold;

    fn build_hasher(&self) -> Fold {
        Fold { key: *self, hash: 0 }
    }
}

impl Hasher for Fold {
    fn write_u128(&mut self, address: u128) {
        let (high, low) = ((address >> 64) as u64, address as u64);
        let product = u128::from(high ^ self.key.0) * u128::from(low ^ self.key.1);
        self.hash = (product >> 64) as u64 ^ product as u64;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a client is hashed as one number");
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

impl Clients {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            rule: AtomicU64::new(rule(settings)),
            shards: std::array::from_fn(|_| Mutex::new(Shard::default())),
        }
    }

    /// Puts another cap into force for who comes from now on; nobody inside is sent away.
    pub(super) fn apply(&self, settings: &Settings) {
        self.rule.store(rule(settings), Ordering::Release);
    }

    /// Counts an arrival, unless the client has too much already. Who is counted must [`leave`](Self::leave).
    pub(super) fn join(&self, client: Client) -> Census {
        let rule = self.rule.load(Ordering::Acquire);
        let cap = rule as u32; // the low half, by layout
        let mut shard = lock(self.shard(client));
        let count = shard.entry(client).or_insert(0);
        let beyond = cap != 0 && *count >= cap;
        if beyond && rule & REFUSES != 0 {
            // The count is not 0, so this leaves no empty entry behind: the cap is at least 1.
            return Census::Refused;
        }
        *count += 1;
        if beyond { Census::Beyond } else { Census::Within }
    }

    pub(super) fn leave(&self, client: Client) {
        let mut shard = lock(self.shard(client));
        let Entry::Occupied(mut count) = shard.entry(client) else {
            debug_assert!(false, "left without having joined");
            return;
        };
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
            if shard.is_empty() && shard.capacity() > KEPT {
                *shard = Shard::default();
            }
        }
    }

    /// Neighbouring addresses differ in the last bytes. Somebody who aims for one shard gains
    /// contention on a lock held for nanoseconds; the maps themselves hash with a secret key.
    fn shard(&self, client: Client) -> &Mutex<Shard> {
        let folded = (client.0[0] ^ client.0[1]).to_ne_bytes().into_iter().fold(0, |a, b| a ^ b);
        &self.shards[usize::from(folded ^ folded >> 4) % SHARDS]
    }
}

fn rule(settings: &Settings) -> u64 {
    let cap = settings.per_client_limit.map_or(0, |cap| u64::from(cap.get()));
    match settings.mode {
        Mode::Enforce => cap | REFUSES,
        Mode::Observe | Mode::Off => cap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn capped(mode: Mode, cap: u32) -> Settings {
        Settings { mode, per_client_limit: NonZeroU32::new(cap), ..Settings::plain(mode) }
    }

    fn client(address: &str) -> Client {
        Client::from(address.parse::<IpAddr>().unwrap())
    }

    fn entries(clients: &Clients) -> usize {
        clients.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    #[test]
    fn refuses_beyond_the_cap_and_each_client_by_itself() {
        let clients = Clients::new(&capped(Mode::Enforce, 2));
        let (one, other) = (client("192.0.2.1"), client("2001:db8::1"));
        assert_eq!(clients.join(one), Census::Within);
        assert_eq!(clients.join(one), Census::Within);
        assert_eq!(clients.join(one), Census::Refused);
        assert_eq!(clients.join(other), Census::Within);
        clients.leave(one);
        assert_eq!(clients.join(one), Census::Within);
    }

    #[test]
    fn a_cap_switched_on_live_covers_what_is_already_there() {
        let clients = Clients::new(&capped(Mode::Enforce, 0));
        let one = client("192.0.2.1");
        assert_eq!([(); 3].map(|()| clients.join(one)), [Census::Within; 3]);
        clients.apply(&capped(Mode::Enforce, 3));
        assert_eq!(clients.join(one), Census::Refused);
    }

    #[test]
    fn observing_notes_what_enforcing_would_refuse() {
        let clients = Clients::new(&capped(Mode::Observe, 1));
        let one = client("192.0.2.1");
        assert_eq!(clients.join(one), Census::Within);
        assert_eq!(clients.join(one), Census::Beyond);
    }

    #[test]
    fn an_ipv4_client_is_the_same_through_an_ipv6_socket() {
        assert_eq!(client("192.0.2.1"), client("::ffff:192.0.2.1"));
    }

    #[test]
    fn a_name_is_one_client_and_no_other() {
        let (one, other) = (Client::named(b"one"), Client::named(b"other"));
        assert_eq!(one, Client::named(b"one"));
        assert_ne!(one, other);
        assert_ne!(one.0[0], one.0[1], "each half has a key of its own");
    }

    #[test]
    fn who_has_nothing_here_is_not_in_the_census() {
        let clients = Clients::new(&capped(Mode::Enforce, 1));
        let all: Vec<_> = (0..=u16::MAX)
            .map(|n| Client::from(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n])))
            .collect();
        for &client in &all {
            assert_eq!(clients.join(client), Census::Within);
            assert_eq!(clients.join(client), Census::Refused);
        }
        assert_eq!(entries(&clients), all.len());
        for &client in &all {
            clients.leave(client);
        }
        assert_eq!(entries(&clients), 0);
        for shard in &clients.shards {
            assert!(lock(shard).capacity() <= KEPT, "the flood's memory is given back");
        }
    }
}
