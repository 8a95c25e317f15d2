//! A set of ports, as people write it and as the kernel's interval sets hold it.
//!
//! Always true: the intervals are sorted, do not touch each other, and hold no port 0.

use std::fmt;

/// More intervals than this are no list that somebody wrote, and would not fit into one message.
const MOST_INTERVALS: usize = 1000;

/// Ports, as intervals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortSet {
    intervals: Vec<[u16; 2]>,
}

impl PortSet {
    /// What may be written, as the end of a sentence that begins with "must be".
    pub const ALLOWED: &'static str =
        "up to 1000 ports or ranges such as `8080,9000-9100`, `all`, or `none`";

    /// Every port there is.
    pub fn all() -> Self {
        Self { intervals: vec![[1, u16::MAX]] }
    }

    /// `8080,9000-9100`, `all`, `none`; `None` if it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "all" => return Some(Self::all()),
            "none" => return Some(Self::default()),
            _ => {}
        }
        let intervals: Option<Vec<_>> = text.split(',').map(|part| interval(part.trim())).collect();
        let intervals = intervals?;
        (intervals.len() <= MOST_INTERVALS).then(|| Self::of(intervals))
    }

    /// The ports of these intervals, which may overlap.
    pub fn of(intervals: impl IntoIterator<Item = [u16; 2]>) -> Self {
        let mut sorted: Vec<_> = intervals.into_iter().collect();
        sorted.sort_unstable();
        let mut merged: Vec<[u16; 2]> = Vec::new();
        for [first, last] in sorted {
            match merged.last_mut() {
                Some(before) if first <= before[1].saturating_add(1) => {
                    before[1] = before[1].max(last);
                }
                _ => merged.push([first, last]),
            }
        }
        Self { intervals: merged }
    }

    /// These and those.
    pub fn with(&self, more: impl IntoIterator<Item = [u16; 2]>) -> Self {
        Self::of(self.intervals.iter().copied().chain(more))
    }

    /// First and last port of each interval.
    pub fn intervals(&self) -> &[[u16; 2]] {
        &self.intervals
    }

    /// Whether it holds `port`.
    pub fn contains(&self, port: u16) -> bool {
        let after = self.intervals.partition_point(|[first, _]| *first <= port);
        after > 0 && port <= self.intervals[after - 1][1]
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    /// How many ports it holds.
    pub fn len(&self) -> usize {
        self.intervals.iter().map(|[first, last]| usize::from(last - first) + 1).sum()
    }

    /// Every port in it.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.intervals.iter().flat_map(|[first, last]| *first..=*last)
    }

    /// Without those of `other`.
    pub fn minus(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut others = other.intervals.iter().peekable();
        // Below it, everything has been decided.
        let mut from = 0;
        for [first, last] in &self.intervals {
            from = from.max(u32::from(*first));
            while let Some([out, end]) = others.next_if(|[out, _]| out <= last) {
                left.extend(up_to(from, u32::from(*out)));
                from = from.max(u32::from(*end) + 1);
            }
            left.extend(up_to(from, u32::from(*last) + 1));
        }
        Self { intervals: left }
    }
}

/// From `first` on and without `end`, if that is anything.
fn up_to(first: u32, end: u32) -> Option<[u16; 2]> {
    let last = end.checked_sub(1).filter(|last| first <= *last)?;
    Some([u16::try_from(first).ok()?, u16::try_from(last).ok()?])
}

/// `8080` or `9000-9100`.
fn interval(text: &str) -> Option<[u16; 2]> {
    let port = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| *port != 0 && digits)
    };
    let [first, last] = match text.split_once('-') {
        Some((first, last)) => [port(first)?, port(last)?],
        None => [port(text)?; 2],
    };
    (first <= last).then_some([first, last])
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (at, [first, last]) in self.intervals.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> PortSet {
        PortSet::parse(text).expect(text)
    }

    #[test]
    fn lists_are_sorted_and_joined() {
        assert_eq!(ports("9000-9100,8080, 9050-9200,9201").intervals(), [[8080; 2], [9000, 9201]]);
        assert_eq!(ports("all").len(), 65_535);
        assert!(ports("none").is_empty());
        assert_eq!(ports("1-3,65535").to_string(), "1-3, 65535");
        assert_eq!(ports("1-3,65535").iter().collect::<Vec<_>>(), [1, 2, 3, 65535]);
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for bad in ["", "0", "80,", "80-", "9-8", "65536", "+80", "http", "1-2-3", "80;drop", "-1"]
        {
            assert_eq!(PortSet::parse(bad), None, "{bad}");
        }
        let many: Vec<_> = (1..=1001).map(|n| (2 * n).to_string()).collect();
        assert_eq!(PortSet::parse(&many.join(",")), None, "too many");
    }

    #[test]
    fn a_difference_is_what_is_left() {
        let left = |a: &str, b: &str| ports(a).minus(&ports(b)).to_string();
        assert_eq!(left("80,90-100", "95"), "80, 90-94, 96-100");
        assert_eq!(left("90-100", "80-95"), "96-100");
        assert_eq!(left("90-100", "1-65535"), "none");
        assert_eq!(left("all", "1,65535"), "2-65534");
        assert_eq!(left("80-85,90-95,99", "84-92,95"), "80-83, 93-94, 99");
        assert_eq!(left("10-20,65535", "1-5,7,10,65535"), "11-20");
        assert_eq!(left("10-20", "none"), "10-20");
    }
}
