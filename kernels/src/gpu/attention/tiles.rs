//! How attention is divided among blocks; the records that `attention.cuh` and `attention_decode.cu` name.

use std::{cmp::Reverse, ops::Range};

use candle_core::{Device, Result, Tensor, bail};

use crate::Segment;

/// Queries of a tile.
pub(super) const QUERY_ROWS: usize = 128;
/// Keys of a tile.
pub(super) const KEY_ROWS: usize = 64;
/// Rows of a block that decodes.
pub(super) const DECODE_ROWS: usize = 16;
/// Blocks that decoding is split into: three for each multiprocessor of a large card, as many as fit at a time.
const DECODE_BLOCKS: usize = 384;
/// Tiles of keys below which a block's start costs more than splitting brings; `attention_decode.cu` has it, too.
const MIN_SPLIT_TILES: usize = 2;

/// What decides the tiles, beside the segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Division {
    /// Of `num_rows` rows of q, 128 a tile.
    Queries { num_rows: usize },
    /// Of `num_rows` rows of k, 64 a tile.
    Keys { num_rows: usize },
    /// Of `num_rows` rows of q with the heads of a group, 16 a tile, and of the keys that `window` lets them see.
    Splits { num_rows: usize, num_kv_heads: usize, group: usize, window: Option<usize> },
}

/// The tiles of a kernel's blocks, on its device.
#[derive(Debug, Clone)]
pub(crate) struct Tiles {
    pub(crate) records: Tensor,
    pub(crate) count: usize,
    /// Where each query's splits are; `None` if no keys were split.
    pub(crate) joins: Option<Tensor>,
}

impl Tiles {
    pub(crate) fn new(segments: &[Segment], division: Division, device: &Device) -> Result<Self> {
        let (records, joins) = match division {
            Division::Queries { num_rows } => (query_tiles(segments, num_rows)?, None),
            Division::Keys { num_rows } => (key_tiles(segments, num_rows)?, None),
            Division::Splits { num_rows, num_kv_heads, group, window } => {
                splits(segments, num_rows, num_kv_heads, group, window)?
            }
        };
        let upload = |records: Vec<Vec<u32>>| {
            let words = records.concat();
            let length = words.len();
            Tensor::from_vec(words, length, device)
        };
        let count = records.len();
        Ok(Self { records: upload(records)?, count, joins: joins.map(upload).transpose()? })
    }

    pub(crate) fn device(&self) -> &Device {
        self.records.device()
    }
}

/// Splits of a query's keys where the device alone knows how many there are, at most `max_keys`, for so many blocks.
pub(super) fn max_splits(num_blocks: usize, max_keys: usize) -> usize {
    let most = max_keys.div_ceil(KEY_ROWS).div_ceil(MIN_SPLIT_TILES);
    (DECODE_BLOCKS / num_blocks).clamp(1, most.max(1))
}

/// The segments with rows, in the rows' order, those of no segment as segments too: theirs see and are seen by nothing.
fn all_rows(
    segments: &[Segment],
    num_rows: usize,
    rows: fn(&Segment) -> &Range<usize>,
    gap: fn(Range<usize>) -> Segment,
) -> Result<Vec<Segment>> {
    let mut all: Vec<Segment> =
        segments.iter().filter(|segment| !rows(segment).is_empty()).cloned().collect();
    all.sort_by_key(|segment| rows(segment).start);
    let mut gaps = Vec::new();
    let mut reached = 0;
    for segment in &all {
        let Range { start, end } = *rows(segment);
        if start < reached {
            bail!(
                "attention on a GPU takes no segments that overlap, one begins at row {start} of {reached}"
            );
        }
        if start > reached {
            gaps.push(gap(reached..start));
        }
        reached = end;
    }
    if reached < num_rows {
        gaps.push(gap(reached..num_rows));
    }
    all.append(&mut gaps);
    Ok(all)
}

fn all_queries(segments: &[Segment], num_rows: usize) -> Result<Vec<Segment>> {
    all_rows(segments, num_rows, |segment| &segment.queries, |queries| Segment { queries, keys: 0..0 })
}

/// The key that a segment's first query is level with; negative in a gap.
fn first_position(segment: &Segment) -> i32 {
    segment.keys.len() as i32 - segment.queries.len() as i32
}

/// `QueryTile`s, those with the most keys first: what is last to start should be soon done.
fn query_tiles(segments: &[Segment], num_rows: usize) -> Result<Vec<Vec<u32>>> {
    let mut tiles = Vec::new();
    for segment in all_queries(segments, num_rows)? {
        for first in (0..segment.queries.len()).step_by(QUERY_ROWS) {
            let count = (segment.queries.len() - first).min(QUERY_ROWS);
            let position = first_position(&segment) + first as i32;
            tiles.push((
                position + count as i32,
                [
                    (segment.queries.start + first) as u32,
                    count as u32,
                    segment.keys.start as u32,
                    position as u32,
                ],
            ));
        }
    }
    tiles.sort_by_key(|(num_keys, _)| Reverse(*num_keys));
    Ok(tiles.into_iter().map(|(_, tile)| tile.to_vec()).collect())
}

/// `KeyTile`s, those with the most queries first.
fn key_tiles(segments: &[Segment], num_rows: usize) -> Result<Vec<Vec<u32>>> {
    let gap = |keys| Segment { queries: 0..0, keys };
    let mut tiles = Vec::new();
    for segment in all_rows(segments, num_rows, |segment| &segment.keys, gap)? {
        for first in (0..segment.keys.len()).step_by(KEY_ROWS) {
            let count = (segment.keys.len() - first).min(KEY_ROWS);
            let num_queries = segment.queries.len();
            let level = first as i32 - first_position(&segment);
            tiles.push((
                num_queries as i32 - level.max(0),
                [
                    (segment.keys.start + first) as u32,
                    count as u32,
                    level as u32,
                    segment.queries.start as u32,
                    num_queries as u32,
                ],
            ));
        }
    }
    tiles.sort_by_key(|(num_queries, _)| Reverse(*num_queries));
    Ok(tiles.into_iter().map(|(_, tile)| tile.to_vec()).collect())
}

/// Records of a kernel, a few words each.
type Records = Vec<Vec<u32>>;

/// `DecodeTile`s and, if keys are split, the queries' `SplitQuery`s.
fn splits(
    segments: &[Segment],
    num_rows: usize,
    num_kv_heads: usize,
    group: usize,
    window: Option<usize>,
) -> Result<(Records, Option<Records>)> {
    let all = all_queries(segments, num_rows)?;
    // Which keys are seen, and by how many rows of the kernel.
    let keys = |segment: &Segment| match segment.keys.len() {
        0 => 0..0,
        length => segment.visible(0, window).start..length,
    };
    let num_row_tiles = |segment: &Segment| (segment.queries.len() * group).div_ceil(DECODE_ROWS);
    let num_key_tiles = |segment: &Segment| keys(segment).len().div_ceil(KEY_ROWS);
    let work: usize = all.iter().map(|segment| num_row_tiles(segment) * num_key_tiles(segment)).sum();
    let split_tiles = (work * num_kv_heads).div_ceil(DECODE_BLOCKS).max(MIN_SPLIT_TILES);

    let mut tiles = Vec::new();
    let mut joins = vec![Vec::new(); num_rows];
    let mut is_split = false;
    for segment in &all {
        let keys = keys(segment);
        let num_splits = num_key_tiles(segment).div_ceil(split_tiles).max(1);
        let split_keys = num_key_tiles(segment).div_ceil(num_splits) * KEY_ROWS;
        is_split |= num_splits > 1;
        for (i, row) in segment.queries.clone().enumerate() {
            joins[row] = vec![tiles.len() as u32, num_splits as u32, (i * group) as u32];
        }
        for first_row in (0..num_row_tiles(segment)).map(|tile| tile * DECODE_ROWS) {
            for split in 0..num_splits {
                let begin = (keys.start + split * split_keys).min(keys.end);
                tiles.push(vec![
                    segment.queries.start as u32,
                    segment.queries.len() as u32,
                    first_row as u32,
                    segment.keys.start as u32,
                    first_position(segment) as u32,
                    begin as u32,
                    (begin + split_keys).min(keys.end) as u32,
                ]);
            }
        }
    }
    Ok((tiles, is_split.then_some(joins)))
}
