use std::{
    ops::{Deref, Range},
    sync::{Mutex, PoisonError},
};

use candle_core::{Device, Result};

use crate::gpu::attention::{Division, Tiles};

/// One example inside a packed batch: its queries see its keys only, causally, the last query seeing every key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub queries: Range<usize>,
    pub keys: Range<usize>,
}

impl Segment {
    /// A segment that attends to itself, as in training.
    pub fn square(tokens: Range<usize>) -> Self {
        Self { queries: tokens.clone(), keys: tokens }
    }

    /// Which of the segment's keys its query `row` sees: the last `window` of those before it, itself included.
    pub(crate) fn visible(&self, row: usize, window: Option<usize>) -> Range<usize> {
        let end = self.keys.len() - self.queries.len() + row + 1;
        window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// The segments of a batch, with what a GPU was told of them: all layers of a pass use one of these.
#[derive(Debug, Default)]
pub struct Segments {
    segments: Vec<Segment>,
    /// There are as many as kinds of layers, each for forward and backward.
    tiles: Mutex<Vec<(Division, Tiles)>>,
}

impl Segments {
    /// The blocks' work on `device`, uploaded when it is first asked for.
    ///
    /// Errors: segments that overlap.
    pub(crate) fn tiles(&self, device: &Device, division: Division) -> Result<Tiles> {
        let mut all = self.tiles.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it =
            |(known, tiles): &&(Division, Tiles)| *known == division && tiles.device().same_device(device);
        if let Some((_, tiles)) = all.iter().find(is_it) {
            return Ok(tiles.clone());
        }
        let tiles = Tiles::new(&self.segments, division, device)?;
        all.push((division, tiles.clone()));
        Ok(tiles)
    }
}

impl From<Vec<Segment>> for Segments {
    fn from(segments: Vec<Segment>) -> Self {
        Self { segments, ..Self::default() }
    }
}

impl Deref for Segments {
    type Target = [Segment];

    fn deref(&self) -> &[Segment] {
        &self.segments
    }
}

impl PartialEq for Segments {
    fn eq(&self, other: &Self) -> bool {
        self.segments == other.segments
    }
}
