//! Numbers and dates as people read them.

use lathe_protocol::RunConfig;

/// `1.4 GB`; decimal units, as disks and downloads have them.
pub fn bytes(count: u64) -> String {
    let (value, unit) = scaled(count, ["B", "KB", "MB", "GB", "TB"]);
    if unit == "B" || value >= 100.0 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// In the largest unit, each a thousand of the one before, that leaves at least 1.
fn scaled(count: u64, units: [&'static str; 5]) -> (f64, &'static str) {
    let (mut value, mut unit) = (count as f64, units[0]);
    for next in &units[1..] {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    (value, unit)
}

/// `14.2 GiB`; binary units, as memory has them.
pub fn gib(count: u64) -> String {
    let gib = count as f64 / (1u64 << 30) as f64;
    if gib < 0.995 { format!("{:.0} MiB", gib * 1024.0) } else { format!("{gib:.1} GiB") }
}

/// `1,234,567`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `135M`, `1.7B`: parameters, or tokens.
pub fn short_count(count: u64) -> String {
    let (value, unit) = scaled(count, ["", "K", "M", "B", "T"]);
    if unit.is_empty() || value >= 99.5 { format!("{value:.0}{unit}") } else { format!("{value:.1}{unit}") }
}

/// `3 rows`, `1 row`.
pub fn plural(number: usize, thing: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {thing}{s}", count(number as u64))
}

/// `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub fn duration(secs: f64) -> String {
    let secs = secs.max(0.0).round() as u64;
    match secs {
        0..60 => format!("{secs} s"),
        60..600 if !secs.is_multiple_of(60) => format!("{} min {} s", secs / 60, secs % 60),
        60..3600 => format!("{} min", secs / 60),
        3600..86_400 => format!("{} h {} min", secs / 3600, secs / 60 % 60),
        _ => format!("{} d {} h", secs / 86_400, secs / 3600 % 24),
    }
}

/// `8 ms`, `1.2 s`.
pub fn short_secs(secs: f64) -> String {
    if secs < 0.1 { format!("{:.0} ms", secs * 1000.0) } else { format!("{secs:.1} s") }
}

/// `just now`, `5 min ago`, `3 days ago`, or the date.
pub fn ago(then_secs: u64, now_secs: f64) -> String {
    let secs = (now_secs - then_secs as f64).max(0.0) as u64;
    match secs {
        0..60 => "just now".into(),
        60..3600 => format!("{} min ago", secs / 60),
        3600..86_400 => format!("{} h ago", secs / 3600),
        86_400..172_800 => "yesterday".into(),
        172_800..1_209_600 => format!("{} days ago", secs / 86_400),
        _ => date(then_secs),
    }
}

/// `2026-04-01`, in UTC.
pub fn date(secs: u64) -> String {
    jiff::Timestamp::from_second(secs.cast_signed()).unwrap_or_default().strftime("%F").to_string()
}

/// Four significant digits or so: losses, norms, rates.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".into()
    } else if size >= 1000.0 {
        format!("{value:.0}")
    } else if size >= 100.0 {
        format!("{value:.1}")
    } else if size >= 0.01 {
        format!("{value:.3}")
    } else {
        format!("{value:.2e}")
    }
}

/// A path's last part.
pub fn file_name(path: &str) -> &str {
    path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(path)
}

/// The name of the data of a run: of its first file, and how many more there are.
pub fn data_name(path: &str, config: &RunConfig) -> String {
    match (file_name(path), config.data.len()) {
        (name, 0 | 1) => name.to_owned(),
        (name, files) => format!("{name} and {} more", files - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_well() {
        assert_eq!([bytes(0), bytes(999), bytes(98_400_000)], ["0 B", "999 B", "98.4 MB"]);
        assert_eq!([bytes(999_999), bytes(1_500_000_000_000)], ["1.0 MB", "1.5 TB"]);
        assert_eq!([gib(1 << 29), gib(24 << 30)], ["512 MiB", "24.0 GiB"]);
        assert_eq!([count(7), count(1234), count(1_234_567)], ["7", "1,234", "1,234,567"]);
        assert_eq!([short_count(134_515_008), short_count(1_711_376_384)], ["135M", "1.7B"]);
        assert_eq!([plural(1, "row"), plural(1200, "row")], ["1 row", "1,200 rows"]);
        assert_eq!(
            [number(2e-4), number(0.7271), number(12.3456), number(0.0)],
            ["2.00e-4", "0.727", "12.346", "0"]
        );
    }

    #[test]
    fn times_read_well() {
        let durations = [12.4, 80.0, 1200.0, 7500.0, 273_600.0].map(duration);
        assert_eq!(durations, ["12 s", "1 min 20 s", "20 min", "2 h 5 min", "3 d 4 h"]);
        assert_eq!([0.0083, 0.1, 2.345].map(short_secs), ["8 ms", "0.1 s", "2.3 s"]);
        let now = 1_800_000_000.0;
        let agos = [10, 300, 7200, 90_000, 400_000, 40_000_000].map(|secs| ago(1_800_000_000 - secs, now));
        assert_eq!(agos, ["just now", "5 min ago", "2 h ago", "yesterday", "4 days ago", "2025-10-09"]);
        assert_eq!(file_name("/a/b.jsonl"), "b.jsonl");
        assert_eq!(file_name("C:\\data\\x\\"), "x");
    }
}
