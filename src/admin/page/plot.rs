//! Small plots of the last minutes, as SVG. They are drawn here and not in the browser, so that they
//! are there without scripts, too.

use std::fmt::Write;

use serde_json::Value;

use super::super::story;
use super::markup::Html;

/// One entry a second; the newest is at the right edge.
const SECONDS: usize = 180;

/// In units of the drawing, which is stretched to where it stands.
const HEIGHT: f64 = 60.0;

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Count,
    PerSecond,
    Seconds,
}

/// One line of a plot.
pub(super) struct Line<'a> {
    /// What it is called, such as `p99`.
    pub(super) name: &'static str,
    /// `main`, `other` or `alarm`: how it looks.
    pub(super) look: &'static str,
    /// Whether the room below it is filled.
    pub(super) filled: bool,
    /// A number or null each.
    pub(super) values: &'a Value,
}

/// A plot.
pub(super) struct Plot<'a> {
    /// What it is of.
    pub(super) title: &'static str,
    pub(super) unit: Unit,
    pub(super) lines: Vec<Line<'a>>,
    /// What the lines may come up to, with its name.
    pub(super) ceiling: Option<(&'static str, f64)>,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Count => story::grouped(value as u64),
            Self::PerSecond => format!("{}/s", story::rate(value)),
            Self::Seconds => story::duration(value),
        }
    }

    /// Of a plot in which nothing happened.
    const fn smallest(self) -> f64 {
        match self {
            Self::Count | Self::PerSecond => 1.0,
            Self::Seconds => 0.001,
        }
    }
}

impl Line<'_> {
    /// The newest [`SECONDS`] values.
    fn recent(&self) -> Vec<Option<f64>> {
        let all = self.values.as_array().map(Vec::as_slice).unwrap_or_default();
        let from = all.len().saturating_sub(SECONDS);
        all[from..].iter().map(|value| value.as_f64().filter(|n| (0.0..1e15).contains(n))).collect()
    }

    fn highest(&self) -> Option<f64> {
        self.recent().into_iter().flatten().reduce(f64::max)
    }
}

impl Plot<'_> {
    /// Legend, drawing and axis.
    pub(super) fn draw(&self, html: &mut Html) {
        let highest = self.lines.iter().filter_map(Line::highest).fold(0.0, f64::max);
        // A ceiling far above everything would press the lines to the ground.
        let ceiling =
            self.ceiling.filter(|(_, at)| *at > 0.0 && (highest == 0.0 || *at <= 4.0 * highest));
        let top = highest.max(ceiling.map_or(0.0, |(_, at)| at)).max(self.unit.smallest());
        let scale = (HEIGHT - 4.0) / top;
        html.tag("figure", &[], |html| {
            // A line alone is what the heading over it says.
            html.tag("figcaption", &[], |html| {
                for line in self.lines.iter().filter(|_| self.lines.len() > 1) {
                    let look = format!("key {}", line.look);
                    html.leaf("span", &[("class", &look)], line.name);
                }
                if let Some((name, _)) = ceiling {
                    html.leaf("span", &[("class", &"key ceiling")], name);
                }
            });
            html.tag(
                "svg",
                &[
                    ("viewBox", &format!("0 0 {SECONDS} {HEIGHT}")),
                    ("preserveAspectRatio", &"none"),
                    ("role", &"img"),
                    ("aria-label", &self.spoken()),
                ],
                |html| {
                    for line in &self.lines {
                        draw(line, scale, html);
                    }
                    if let Some((_, at)) = ceiling {
                        let y = HEIGHT - 1.0 - at * scale;
                        let path = format!("M0 {y:.1}H{SECONDS}");
                        html.leaf("path", &[("class", &"ceiling"), ("d", &path)], "");
                    }
                },
            );
            html.tag("p", &[("class", &"axis"), ("aria-hidden", &"true")], |html| {
                html.leaf("span", &[], format!("−{} min", SECONDS / 60));
                html.leaf("span", &[], format!("top {}", self.unit.show(top)));
            });
        });
    }

    /// The plot for those who do not see it.
    fn spoken(&self) -> String {
        let mut text = format!("{}, last {} minutes", self.title, SECONDS / 60);
        for line in &self.lines {
            let now = line.recent().last().copied().flatten();
            let _ = match (now, line.highest()) {
                (Some(now), Some(highest)) => write!(
                    text,
                    "; {}: now {}, highest {}",
                    line.name,
                    self.unit.show(now),
                    self.unit.show(highest)
                ),
                (None, Some(highest)) => {
                    write!(
                        text,
                        "; {}: nothing now, highest {}",
                        line.name,
                        self.unit.show(highest)
                    )
                }
                (_, None) => write!(text, "; {}: nothing", line.name),
            };
        }
        text
    }
}

fn draw(line: &Line<'_>, scale: f64, html: &mut Html) {
    let values = line.recent();
    let from = SECONDS - values.len();
    let at = |place: usize, value: f64| (from + place, HEIGHT - 1.0 - value * scale);
    let mut path = String::with_capacity(values.len() * 10);
    let mut area = String::new();
    let mut begun = None;
    for (place, value) in values.iter().enumerate() {
        let Some(value) = *value else {
            begun = None;
            continue;
        };
        let (x, y) = at(place, value);
        let _ = match begun {
            // A point of its own is a dot, because the ends of lines are round.
            None => write!(path, "M{x} {y:.1}h.5"),
            Some(()) => write!(path, "L{x} {y:.1}"),
        };
        begun = Some(());
        if line.filled {
            let _ = write!(area, "L{x} {y:.1}");
        }
    }
    if !area.is_empty() {
        let closed = format!("M{from} {HEIGHT}{area}V{HEIGHT}z");
        let look = format!("area {}", line.look);
        html.leaf("path", &[("class", &look), ("d", &closed)], "");
    }
    let look = format!("line {}", line.look);
    html.leaf("path", &[("class", &look), ("d", &path)], "");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn drawn(values: &Value, ceiling: Option<(&'static str, f64)>) -> String {
        let line = Line { name: "p99", look: "main", filled: false, values };
        let plot = Plot { title: "Wait", unit: Unit::Seconds, lines: vec![line], ceiling };
        let mut html = Html::default();
        plot.draw(&mut html);
        html.finish()
    }

    #[test]
    fn gaps_stay_gaps_and_the_newest_is_at_the_right_edge() {
        let html = drawn(&json!([0.5, null, 1.0, 0.0]), None);
        assert!(html.contains("d=\"M176 31.0h.5M178 3.0h.5L179 59.0\""), "{html}");
        assert!(html.contains("p99: now 0 µs, highest 1 s"), "{html}");
        assert!(html.contains("top 1 s"), "{html}");
    }

    #[test]
    fn anything_can_come_and_nothing_breaks() {
        for odd in [json!(null), json!([]), json!(["x", {}, -1e308]), json!(vec![1; 1000])] {
            let html = drawn(&odd, Some(("limit", 8.0)));
            assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
        }
    }
}
