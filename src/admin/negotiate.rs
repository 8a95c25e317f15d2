//! Which text format a scraper gets: the one it likes better, by the rules of `Accept` (RFC 9110,
//! 12.5.1). Who does not say gets the classic one, which every tool reads and a browser shows.

/// How the page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// What Prometheus has read since it exists.
    Classic,
    /// Its successor.
    OpenMetrics,
}

/// How closely a media range names a format; the closest decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Closeness {
    /// `*/*`
    Anything,
    /// `text/*`
    Kind,
    /// `text/plain`
    Type,
    /// `text/plain; version=0.0.4`
    Version,
}

impl Format {
    /// The format that a client likes best. `accept`: the header's values.
    pub(crate) fn negotiate<'a>(accept: impl Iterator<Item = &'a str>) -> Self {
        let mut liked = [Self::Classic, Self::OpenMetrics].map(|format| (format, None));
        for range in accept.flat_map(|value| split(value, ',')) {
            for (format, liking) in &mut liked {
                let found = format.named_by(range);
                if found.map(|(closeness, _)| closeness) > liking.map(|(closeness, _)| closeness) {
                    *liking = found;
                }
            }
        }
        let [(_, classic), (_, modern)] = liked;
        let quality = |liking: Option<(Closeness, f32)>| liking.map_or(0.0, |(_, q)| q);
        // Who names both alike knows the newer one; who only says "anything" may not.
        let knows = modern.is_some_and(|(closeness, _)| closeness >= Closeness::Type);
        let better = quality(modern) > quality(classic);
        if better || knows && quality(modern) > 0.0 && quality(modern) == quality(classic) {
            Self::OpenMetrics
        } else {
            Self::Classic
        }
    }

    /// What to call it.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    const fn media_type(self) -> (&'static str, &'static str) {
        match self {
            Self::Classic => ("text", "plain"),
            Self::OpenMetrics => ("application", "openmetrics-text"),
        }
    }

    const fn version(self) -> &'static str {
        match self {
            Self::Classic => "0.0.4",
            Self::OpenMetrics => "1.0.0",
        }
    }

    /// How closely one media range names this format and how much it is liked, from 0 to 1.
    fn named_by(self, range: &str) -> Option<(Closeness, f32)> {
        let mut parts = split(range, ';');
        let (kind, name) = parts.next()?.split_once('/')?;
        let is = |word: &str, ours: &str| word.trim().eq_ignore_ascii_case(ours);
        let (ours, our_name) = self.media_type();
        let mut closeness = match (is(kind, "*"), is(name, "*")) {
            (true, true) => Closeness::Anything,
            (false, true) if is(kind, ours) => Closeness::Kind,
            (false, false) if is(kind, ours) && is(name, our_name) => Closeness::Type,
            _ => return None,
        };
        let mut quality = 1.0;
        for parameter in parts {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = value.trim().trim_matches('"');
            if is(name, "q") {
                // What is no number is no wish.
                quality = value.parse().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0);
            } else if is(name, "version") {
                if value != self.version() {
                    return None;
                }
                closeness = Closeness::Version;
            }
        }
        Some((closeness, quality))
    }
}

/// The parts of a header's value between `separator`, which means nothing inside quotes.
fn split(value: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    value.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::Format::{Classic, OpenMetrics};
    use super::*;

    #[test]
    fn the_format_is_the_one_that_is_liked_better() {
        for (accept, format) in [
            ("", Classic),
            ("*/*", Classic),
            ("text/plain", Classic),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Classic),
            ("application/openmetrics-text", OpenMetrics),
            ("Application/OpenMetrics-Text; Version=1.0.0 ; Q=0.1", OpenMetrics),
            ("application/*", OpenMetrics),
            ("text/plain;q=0.5, application/openmetrics-text;q=0.4", Classic),
            ("text/plain;q=0.5, application/openmetrics-text;q=0.6", OpenMetrics),
            ("text/plain, application/openmetrics-text", OpenMetrics),
            ("application/openmetrics-text;q=0", Classic),
            ("application/openmetrics-text;q=0, */*", Classic),
            ("text/plain;q=0, */*;q=0.1", OpenMetrics),
            ("text/*;q=0.3, application/openmetrics-text;q=0.2", Classic),
            ("application/openmetrics-text;q=nonsense, text/plain;q=0.1", Classic),
            ("application/openmetrics-text;version=\"1.0.0\";q=0.2", OpenMetrics),
            ("application/openmetrics-text;note=\"a, text/plain;q=0\";q=0.2", OpenMetrics),
            // Versions that are not ours.
            ("application/openmetrics-text;version=2.0.0,text/plain;q=0.1", Classic),
            ("application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5", Classic),
            // What Prometheus 2.42 sends, and 3.5.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                 version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,\
                 */*;q=0.2",
                OpenMetrics,
            ),
            // The same, told to prefer the classic text.
            (
                "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5",
                Classic,
            ),
        ] {
            assert_eq!(Format::negotiate([accept].into_iter()), format, "{accept}");
        }
        let lines = ["text/plain;q=0.5", "application/openmetrics-text"];
        assert_eq!(Format::negotiate(lines.into_iter()), OpenMetrics, "two lines are one list");
    }
}
