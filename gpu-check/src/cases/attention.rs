//! Attention against its twin, in shapes that meet every edge of the kernels' tiles.

use std::sync::Arc;

use crate::twins::{Twins, check_near, on_target, random, target};
use candle_core::{DType, Device, Result, Tensor};
use lathe_kernels::{Attention, Segment, Segments};

/// What y's rounding to bf16 costs the gradients of a row's first tokens, whose few keys' weights are large, against the
/// root mean square of all; one key more or less costs these tokens a multiple. On average it is 0.003.
const TOLERANCE: f32 = 6e-2;

struct Shape {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    has_sinks: bool,
}

impl Shape {
    fn attention(&self, device: &Device) -> Result<Attention> {
        let Self { num_heads, num_kv_heads, head_dim, window, has_sinks } = *self;
        let scale = 1.0 / (head_dim as f32).sqrt();
        // Around the logs of the sums of few keys and of many.
        let sinks: Vec<f32> = (0..num_heads).map(|head| 1.5 * head as f32 - 1.0).collect();
        let sinks = has_sinks.then(|| Tensor::from_vec(sinks, num_heads, device)).transpose()?;
        Ok(Attention { num_heads, num_kv_heads, head_dim, scale, window, sinks })
    }

    /// Holds it to the twin over these segments, in q and in k and v with `spare` rows beyond them.
    fn check(&self, segments: Vec<Segment>, spare: usize) -> Result<()> {
        let [cpu, gpu] = [self.attention(&Device::Cpu)?, self.attention(&target())?];
        let rows = |end: fn(&Segment) -> usize| segments.iter().map(end).max().unwrap_or(0) + spare;
        let q = [rows(|segment| segment.queries.end), self.num_heads * self.head_dim];
        let kv = [rows(|segment| segment.keys.end), self.num_kv_heads * self.head_dim];
        let segments: Arc<Segments> = Arc::new(segments.into());
        Twins::new(&[(&q, 1), (&kv, 2), (&kv, 3)])?.check(TOLERANCE, |inputs| {
            let [q, k, v] = inputs else { unreachable!() };
            let attention = if q.dtype() == DType::BF16 { &gpu } else { &cpu };
            attention.forward(q, k, v, &segments)
        })
    }
}

/// Rows of these lengths, packed.
fn packed(lengths: &[usize]) -> Vec<Segment> {
    let mut end = 0;
    let segments = lengths.iter().map(|length| {
        end += length;
        Segment::square(end - length..end)
    });
    segments.collect()
}

/// So many new queries behind what a cache holds, segment by segment.
fn cached(segments: &[(usize, usize)]) -> Vec<Segment> {
    let (mut query, mut key) = (0, 0);
    let segments = segments.iter().map(|(new, past)| {
        let segment = Segment { queries: query..query + new, keys: key..key + past + new };
        query = segment.queries.end;
        key = segment.keys.end;
        segment
    });
    segments.collect()
}

fn shape(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Shape {
    Shape { num_heads, num_kv_heads, head_dim, window: None, has_sinks: false }
}

pub fn packed_rows_of_odd_lengths() -> Result<()> {
    shape(2, 1, 64).check(packed(&[1, 5, 63, 64, 65, 130]), 0)?;
    Shape { has_sinks: true, ..shape(2, 2, 32) }.check(packed(&[130, 1, 70]), 0)
}

pub fn windows_and_sinks() -> Result<()> {
    // Without a sink, the one key of a window of 1 has all the weight, and q and k no gradient. 34 and 95 end at corners
    // of what a warp has of a tile.
    let windows = [(1, true), (7, false), (7, true), (34, true), (95, false), (128, false), (128, true)];
    for (window, has_sinks) in windows {
        let shape = Shape { window: Some(window), has_sinks, ..shape(2, 1, 32) };
        shape.check(packed(&[200, 33]), 0)?;
    }
    Shape { window: Some(128), has_sinks: true, ..shape(8, 1, 64) }.check(packed(&[290]), 0)
}

pub fn head_dims() -> Result<()> {
    for head_dim in [16, 48, 80, 96, 112, 128] {
        Shape { has_sinks: true, ..shape(2, 1, head_dim) }.check(packed(&[20, 70]), 0)?;
    }
    Ok(())
}

pub fn more_keys_than_queries() -> Result<()> {
    shape(2, 1, 64).check(cached(&[(70, 100), (20, 3), (1, 0), (17, 62)]), 0)?;
    Shape { window: Some(50), has_sinks: true, ..shape(2, 2, 128) }.check(cached(&[(30, 140)]), 0)
}

/// Gradients too: an answer may be decoded on inputs that learn.
pub fn decoding() -> Result<()> {
    // One split and several, rows of one query and of sixteen, of a group that straddles blocks.
    shape(8, 1, 64).check(cached(&[(1, 700), (1, 64), (1, 0)]), 0)?;
    shape(5, 1, 128).check(cached(&[(16, 300), (3, 20)]), 0)?;
    for has_sinks in [false, true] {
        let few = Shape { has_sinks, ..shape(4, 2, 32) };
        few.check(cached(&[(1, 500), (2, 131)]), 0)?;
        Shape { window: Some(70), ..few }.check(cached(&[(1, 500), (9, 300)]), 0)?;
    }
    Ok(())
}

pub fn rows_of_no_segment_are_zero() -> Result<()> {
    let holes =
        vec![Segment::square(3..40), Segment::square(40..40), Segment { queries: 50..52, keys: 45..60 }];
    shape(2, 1, 32).check(holes, 9)?;
    shape(2, 1, 32).check(vec![Segment { queries: 1..3, keys: 5..300 }], 4)
}

/// Keys and values of a cache: rows of a larger buffer.
pub fn a_part_of_a_buffer() -> Result<()> {
    let attention = shape(4, 2, 64).attention(&Device::Cpu)?;
    let (q, k, v) = (random(&[1, 256], 1)?, random(&[90, 128], 2)?, random(&[90, 128], 3)?);
    let segments = Arc::new(vec![Segment { queries: 0..1, keys: 0..71 }].into());
    let run = |dtype: DType, device: &Device| {
        let [q, k, v] = [&q, &k, &v].map(|tensor| tensor.to_dtype(dtype)?.to_device(device));
        attention.forward(&q?, &k?.narrow(0, 10, 71)?, &v?.narrow(0, 10, 71)?, &segments)
    };
    check_near(&run(DType::BF16, &target())?, &run(DType::F32, &Device::Cpu)?, TOLERANCE)
}

pub fn what_the_kernels_do_not_do_is_an_error() -> Result<()> {
    let message = |head_dim: usize, segments: Vec<Segment>| -> Result<String> {
        let tensor = on_target(&random(&[20, head_dim], 1)?.to_dtype(DType::BF16)?)?;
        let result = shape(1, 1, head_dim).attention(&target())?.forward(
            &tensor,
            &tensor,
            &tensor,
            &Arc::new(segments.into()),
        );
        Ok(result.expect_err("no kernel for it").to_string())
    };
    assert!(message(24, packed(&[20]))?.contains("multiples of 16 up to 128, got 24"));
    assert!(message(256, packed(&[20]))?.contains("got 256"));
    assert!(message(64, vec![Segment::square(0..12), Segment::square(8..20)])?.contains("overlap"));
    Ok(())
}
