//! Kubernetes' quantities, as far as they have to be compared: `10m`, `0.5`, `128Mi`, `1e3`.

use std::fmt;

/// An amount, and how it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Quantity {
    /// In billionths: fine enough for `n`, wide enough for `E`.
    billionths: i128,
    text: String,
}

/// What may be written, as the end of a sentence that begins with "must be".
pub(super) const ALLOWED: &str = "a quantity of Kubernetes such as `10m`, `0.5`, `64Mi`";

const BILLION: i128 = 1_000_000_000;

impl Quantity {
    /// Nothing is no quantity, and neither is less.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let end = text.bytes().position(|b| !b.is_ascii_digit() && b != b'.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() || part.contains('.') || part.len() > 9 {
            return None;
        }
        let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
        let places = u32::try_from(9 - part.len()).expect("at most 9");
        let number = digits(whole)?
            .checked_mul(BILLION)?
            .checked_add(digits(part)? * 10_i128.pow(places))?;
        let billionths = scaled(number, unit)?;
        (billionths > 0).then(|| Self { billionths, text: text.to_owned() })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// How many times as much as the other, in billionths.
    pub(super) fn times(&self, other: &Self) -> i128 {
        self.billionths.saturating_mul(BILLION) / other.billionths
    }

    /// So many times less, rounded up to what people write of CPU (thousandths) or memory (bytes).
    pub(super) fn divided(&self, by: &Self, cpu: bool) -> Self {
        let step = if cpu { BILLION / 1000 } else { BILLION };
        let exact = self.billionths.saturating_mul(BILLION) / by.billionths;
        let steps = exact / step + i128::from(exact % step != 0);
        let text = if cpu { format!("{steps}m") } else { steps.to_string() };
        Self { billionths: steps * step, text }
    }

    /// How much it is, in billionths.
    pub(super) fn billionths(&self) -> i128 {
        self.billionths
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.billionths.cmp(&other.billionths))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn scaled(number: i128, unit: &str) -> Option<i128> {
    let thousands = |power: u32| number.checked_mul(1000_i128.pow(power));
    let binary = |power: u32| number.checked_mul(1024_i128.pow(power));
    match unit {
        "n" => Some(number / 1_000_000_000),
        "u" => Some(number / 1_000_000),
        "m" => Some(number / 1000),
        "" => Some(number),
        "k" => thousands(1),
        "M" => thousands(2),
        "G" => thousands(3),
        "T" => thousands(4),
        "P" => thousands(5),
        "E" => thousands(6),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = unit.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { Some(number / power) } else { number.checked_mul(power) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_compare_whatever_their_units() {
        let parse = |text| Quantity::parse(text).expect(text);
        for (less, more) in [
            ("9m", "10m"),
            ("999m", "1"),
            ("0.5", "501m"),
            ("976Ki", "1M"),
            ("127Mi", "128Mi"),
            ("1e3", "1001"),
            ("100n", "1u"),
            ("1E", "1Ei"),
        ] {
            assert!(parse(less) < parse(more), "{less} < {more}");
        }
        assert_eq!(parse("1.5Gi").billionths(), parse("1536Mi").billionths());
        assert_eq!(parse("200m").times(&parse("100m")), 2 * BILLION);
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in [
            "", "0", "0Mi", "-1", "+1", "1.2.3", "Mi", "1mi", "1 Mi", "1e", "1e99", ".", "$(X)",
            "1;rm",
        ] {
            assert!(Quantity::parse(bad).is_none(), "{bad}");
        }
    }
}
