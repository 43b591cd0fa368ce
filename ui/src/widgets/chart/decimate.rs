use egui_plot::PlotPoint;

/// Points a column, beyond which a line through them is a scribble.
const CROWDED: usize = 2;

/// A part of the x axis, and into how many columns, each a few pixels wide, it is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Window {
    pub from: f64,
    pub to: f64,
    pub columns: usize,
    /// Whether y is shown as its logarithm.
    pub log: bool,
}

impl Window {
    fn column(self, x: f64) -> i64 {
        let share = (x - self.from) / (self.to - self.from).max(f64::MIN_POSITIVE);
        (share * self.columns as f64).floor() as i64
    }
}

/// What of a long series is drawn: a column's first, lowest, highest and last point, which together cover the same
/// pixels as all of its points.
///
/// Points are taken one by one, so that a series that grows costs what it grew by.
#[derive(Debug, Default)]
pub(super) struct Decimated {
    window: Option<Window>,
    /// Index of the next point to take.
    next: usize,
    points: Vec<PlotPoint>,
    /// Length of `points` without those of the column that is still open.
    closed: usize,
    open: Option<Column>,
}

/// The points of a column, each with its index.
#[derive(Debug, Clone, Copy)]
struct Column {
    index: i64,
    first: (usize, PlotPoint),
    lowest: (usize, PlotPoint),
    highest: (usize, PlotPoint),
    last: (usize, PlotPoint),
}

/// From the lowest to the highest point of column after column.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Band {
    pub xs: Vec<f64>,
    pub lows: Vec<f64>,
    pub highs: Vec<f64>,
}

impl Column {
    fn new(index: i64, at: (usize, PlotPoint)) -> Self {
        Self { index, first: at, lowest: at, highest: at, last: at }
    }

    fn add(&mut self, at: (usize, PlotPoint)) {
        if at.1.y < self.lowest.1.y {
            self.lowest = at;
        }
        if at.1.y > self.highest.1.y {
            self.highest = at;
        }
        self.last = at;
    }

    /// In the order of the series.
    fn points(&self) -> impl Iterator<Item = PlotPoint> + use<> {
        let mut points = [self.first, self.lowest, self.highest, self.last];
        points.sort_by_key(|(index, _)| *index);
        let mut before = None;
        points
            .into_iter()
            .filter(move |(index, _)| before.replace(*index) != Some(*index))
            .map(|(_, point)| point)
    }
}

impl Decimated {
    /// `xs` never falls, and what was handed over before is still at the front of both. The neighbours of the window are
    /// taken too: lines lead to them. A y that is no number (or has no logarithm) becomes a gap.
    pub fn update(&mut self, xs: &[f64], ys: &[f64], window: Window) {
        if self.window != Some(window) {
            let next = xs.partition_point(|x| *x < window.from).saturating_sub(1);
            *self = Self { window: Some(window), next, ..Self::default() };
        }
        let end = (xs.partition_point(|x| *x <= window.to) + 1).min(xs.len());
        if self.next >= end {
            return;
        }
        self.points.truncate(self.closed);
        for index in self.next..end {
            let y = if window.log { ys[index].log10() } else { ys[index] };
            self.take(index, PlotPoint::new(xs[index], y), window);
        }
        self.next = end;
        if let Some(open) = self.open {
            self.points.extend(open.points());
        }
    }

    fn take(&mut self, index: usize, point: PlotPoint, window: Window) {
        if !point.y.is_finite() {
            self.close();
            if self.points.last().is_some_and(|last| !last.y.is_nan()) {
                self.points.push(PlotPoint::new(point.x, f64::NAN));
                self.closed += 1;
            }
            return;
        }
        let column = window.column(point.x);
        match &mut self.open {
            Some(open) if open.index == column => open.add((index, point)),
            _ => {
                self.close();
                self.open = Some(Column::new(column, (index, point)));
            }
        }
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.points.extend(open.points());
        }
        self.closed = self.points.len();
    }

    /// The unbroken lines.
    pub fn lines(&self) -> impl Iterator<Item = &[PlotPoint]> {
        self.points.split(|point| point.y.is_nan()).filter(|line| !line.is_empty())
    }

    /// What an unbroken line covers, where its points are too close to each other to be told apart.
    pub fn band(&self, line: &[PlotPoint]) -> Option<Band> {
        let window = self.window?;
        let mut band = Band::default();
        for column in line.chunk_by(|a, b| window.column(a.x) == window.column(b.x)) {
            band.xs.push(f64::midpoint(column[0].x, column[column.len() - 1].x));
            band.lows.push(column.iter().map(|point| point.y).fold(f64::INFINITY, f64::min));
            band.highs.push(column.iter().map(|point| point.y).fold(f64::NEG_INFINITY, f64::max));
        }
        (line.len() > CROWDED * band.xs.len()).then_some(band)
    }

    /// Lowest and highest y inside the window.
    pub fn extremes(&self) -> Option<(f64, f64)> {
        let window = self.window?;
        let inside = |point: &&PlotPoint| !point.y.is_nan() && (window.from..=window.to).contains(&point.x);
        self.points.iter().filter(inside).fold(None, |extremes, point| {
            let (low, high) = extremes.unwrap_or((point.y, point.y));
            Some((low.min(point.y), high.max(point.y)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(from: f64, to: f64, columns: usize) -> Window {
        Window { from, to, columns, log: false }
    }

    fn wave(count: usize) -> (Vec<f64>, Vec<f64>) {
        let mut ys: Vec<f64> = (0..count).map(|index| (index as f64 * 0.37).sin()).collect();
        ys[count / 3] = -7.0;
        ys[count / 2] = 9.0;
        ((0..count).map(|index| index as f64).collect(), ys)
    }

    fn drawn(xs: &[f64], ys: &[f64], window: Window) -> Vec<PlotPoint> {
        let mut decimated = Decimated::default();
        decimated.update(xs, ys, window);
        decimated.points
    }

    #[test]
    fn ends_extremes_and_order_stay_and_a_column_has_at_most_four_points() {
        let (xs, ys) = wave(100_000);
        let points = drawn(&xs, &ys, window(0.0, 99_999.0, 800));
        assert!(points.len() <= 4 * 801, "{}", points.len());
        assert_eq!((points[0].x, points[0].y), (xs[0], ys[0]));
        let last = points[points.len() - 1];
        assert_eq!((last.x, last.y), (xs[99_999], ys[99_999]));
        assert!(points.windows(2).all(|pair| pair[0].x < pair[1].x));
        for extreme in [-7.0, 9.0] {
            assert!(points.iter().any(|point| point.y.total_cmp(&extreme).is_eq()));
        }
    }

    #[test]
    fn few_points_are_all_drawn() {
        let (xs, ys) = wave(12);
        assert_eq!(drawn(&xs, &ys, window(0.0, 11.0, 800)).len(), 12);
        assert!(drawn(&[], &[], window(0.0, 1.0, 800)).is_empty());
    }

    #[test]
    fn only_the_window_and_its_neighbours_are_drawn() {
        let (xs, ys) = wave(1000);
        let points = drawn(&xs, &ys, window(100.5, 110.5, 800));
        assert_eq!(
            points.iter().map(|point| point.x as usize).collect::<Vec<_>>(),
            (100..=111).collect::<Vec<_>>()
        );
        let mut decimated = Decimated::default();
        decimated.update(&xs, &ys, window(400.0, 600.0, 100));
        assert_eq!(decimated.extremes().map(|(_, high)| high), Some(9.0));
    }

    #[test]
    fn what_is_no_number_cuts_the_line() {
        let xs: Vec<f64> = (0..6).map(f64::from).collect();
        let ys = [1.0, 2.0, f64::NAN, f64::INFINITY, 3.0, 4.0];
        let mut decimated = Decimated::default();
        decimated.update(&xs, &ys, window(0.0, 5.0, 100));
        assert_eq!(decimated.lines().map(<[PlotPoint]>::len).collect::<Vec<_>>(), [2, 2]);
        decimated.update(
            &xs,
            &[1.0, -2.0, 10.0, 100.0, 0.0, 1.0],
            Window { log: true, ..window(0.0, 5.0, 100) },
        );
        assert_eq!(decimated.lines().map(<[PlotPoint]>::len).collect::<Vec<_>>(), [1, 2, 1]);
        assert_eq!(decimated.extremes(), Some((0.0, 2.0)));
    }

    #[test]
    fn a_crowded_line_is_a_band_from_its_lowest_to_its_highest() {
        let (xs, ys) = wave(1024);
        let mut decimated = Decimated::default();
        decimated.update(&xs, &ys, window(0.0, 1024.0, 128));
        let band = decimated.lines().next().and_then(|line| decimated.band(line)).unwrap();
        assert_eq!(band.xs.len(), 128);
        for (column, values) in ys.chunks(8).enumerate() {
            assert!(values.iter().all(|y| (band.lows[column]..=band.highs[column]).contains(y)));
            assert!((band.xs[column] - (column as f64 * 8.0 + 3.5)).abs() < 1e-9);
        }
        decimated.update(&xs, &ys, window(0.0, 1024.0, 512));
        assert_eq!(decimated.lines().next().and_then(|line| decimated.band(line)), None);
    }

    #[test]
    fn growing_bit_by_bit_draws_the_same() {
        let (xs, mut ys) = wave(5000);
        ys[777] = f64::NAN;
        let window = window(0.0, 5200.0, 300);
        let mut growing = Decimated::default();
        for count in (0..=5000).step_by(7).chain([5000]) {
            growing.update(&xs[..count], &ys[..count], window);
        }
        let key = |points: &[PlotPoint]| {
            points.iter().map(|point| (point.x.to_bits(), point.y.to_bits())).collect::<Vec<_>>()
        };
        assert_eq!(key(&growing.points), key(&drawn(&xs, &ys, window)));
    }
}
