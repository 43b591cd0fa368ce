//! What a decoding step reads on the device, against the same of values the host knows.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use lathe_kernels::{Attention, Sampling, Segment, gpu::decode::Sequences};

use crate::twins::{check_near, on_target, random, target, values};

const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };

/// Sequences of these lengths, each with its own key; none continued where there is `None`.
fn sequences(lengths: &[Option<usize>], capacity: usize) -> Result<Sequences> {
    let sequences = Sequences::new(&target(), lengths.len(), capacity, 4)?;
    let logits = Tensor::zeros(5, DType::F32, &target())?;
    for (sequence, length) in lengths.iter().enumerate() {
        if let Some(length) = length {
            sequences.start(sequence, *length, sequence as u64, GREEDY, &logits)?;
        }
    }
    Ok(sequences)
}

/// Holds attention to the cache, and what becomes of the cache, to the twin.
fn check(attention: &Attention, lengths: &[Option<usize>], capacity: usize) -> Result<()> {
    let Attention { num_heads, num_kv_heads, head_dim, .. } = *attention;
    let (batch, width) = (lengths.len(), num_kv_heads * head_dim);
    let q = random(&[batch, num_heads * head_dim], 1)?;
    let [k, v] = [random(&[batch, width], 2)?, random(&[batch, width], 3)?];
    let cache = [random(&[batch * capacity, width], 4)?, random(&[batch * capacity, width], 5)?];

    let bf16 = |tensor: &Tensor| on_target(&tensor.to_dtype(DType::BF16)?);
    let found_cache = [bf16(&cache[0])?, bf16(&cache[1])?];
    let sinks = attention.sinks.as_ref().map(on_target).transpose()?;
    let on_gpu = Attention { sinks, ..attention.clone() };
    let sequences = sequences(lengths, capacity)?;
    let found = sequences.attend(
        &on_gpu,
        &sequences.plan(&on_gpu)?,
        [&bf16(&q)?, &bf16(&k)?, &bf16(&v)?],
        [&found_cache[0], &found_cache[1]],
    )?;

    for (sequence, length) in lengths.iter().enumerate() {
        let Some(length) = *length else { continue };
        let row = sequence * capacity + length;
        for (cache, new) in cache.iter().zip([&k, &v]) {
            cache.slice_set(&new.narrow(0, sequence, 1)?.copy()?, 0, row)?;
        }
        let keys = sequence * capacity..row + 1;
        let segments = Arc::new(vec![Segment { queries: sequence..sequence + 1, keys }].into());
        let expected = attention.forward(&q, &cache[0], &cache[1], &segments)?;
        let of_sequence = |tensor: &Tensor| tensor.narrow(0, sequence, 1);
        check_near(&of_sequence(&found)?, &of_sequence(&expected)?, 2e-2)?;
    }
    for (found, expected) in found_cache.iter().zip(&cache) {
        if values(found)? != values(expected)? {
            bail!("the cache of {lengths:?} is not what was there and the new rows");
        }
    }
    Ok(())
}

pub fn attention_reads_on_the_device_how_many_keys_there_are() -> Result<()> {
    let plain =
        Attention { num_heads: 4, num_kv_heads: 2, head_dim: 32, scale: 0.2, window: None, sinks: None };
    let sinks = |num_heads: usize| Tensor::new(vec![0.5f32; num_heads], &Device::Cpu);
    // One split and several, the last row of the cache, a sequence that is not continued.
    check(&plain, &[Some(0), Some(63), Some(64)], 100)?;
    let lengths = [Some(699), None, Some(5), Some(300)];
    check(&Attention { sinks: Some(sinks(4)?), ..plain.clone() }, &lengths, 700)?;
    let windowed = Attention { window: Some(130), ..plain.clone() };
    check(&windowed, &lengths, 700)?;
    check(&Attention { window: Some(1), sinks: Some(sinks(4)?), ..plain.clone() }, &[Some(70)], 300)?;
    // A group of more heads than a block has rows.
    let grouped = Attention { num_heads: 20, num_kv_heads: 1, head_dim: 64, ..plain };
    check(&grouped, &[Some(400), Some(20)], 401)
}

pub fn tokens_are_drawn_and_counted_on_the_device() -> Result<()> {
    let sampling = Sampling { temperature: 0.8, top_k: 20, top_p: 0.9 };
    let logits = (random(&[3, 97], 8)? * 3.0)?;
    let device = target();
    let slots = Sequences::new(&device, 3, 50, 4)?;
    let (keys, lengths) = ([3, u64::MAX, 1 << 40], [7, 0, 20]);
    let expected = |sequence: usize, length: usize, forbidden: &[u32]| -> Result<u32> {
        let draw = Sequences::draw(keys[sequence], length);
        Ok(sampling.sample(&logits.narrow(0, sequence, 1)?.copy()?, forbidden, &[draw])?[0])
    };
    for sequence in 0..3 {
        slots.start(
            sequence,
            lengths[sequence],
            keys[sequence],
            sampling,
            &on_target(&logits.get(sequence)?)?,
        )?;
    }
    let drawn = |first: &[u32], added: usize| -> Result<()> {
        let found: Vec<u32> = slots.tokens().to_vec1()?;
        for (sequence, found) in found.into_iter().enumerate() {
            let forbidden = if sequence == 1 { first } else { &[] };
            assert_eq!(found, expected(sequence, lengths[sequence] + added, forbidden)?, "after {added}");
        }
        Ok(())
    };
    drawn(&[], 0)?;
    for step in 1..4 {
        slots.advance(sampling, &on_target(&logits.copy()?)?)?;
        drawn(&[], step)?;
    }
    let likeliest = GREEDY.sample(&logits.narrow(0, 1, 1)?.copy()?, &[], &[0.0])?[0];
    slots.forbid(1, &[likeliest])?;
    slots.advance(sampling, &on_target(&logits.copy()?)?)?;
    drawn(&[likeliest], 4)?;
    assert!(slots.forbid(1, &[0; 5]).is_err_and(|error| error.to_string().contains("room for 4")));
    slots.stop(0)?;
    slots.advance(sampling, &on_target(&logits.copy()?)?)?;
    assert_eq!(slots.lengths().to_vec1::<u32>()?, [0, 5, 25]);
    Ok(())
}

pub fn tokens_are_looked_up_on_the_device() -> Result<()> {
    let slots = Sequences::new(&target(), 3, 10, 1)?;
    for (sequence, token) in [4, 9, 1].into_iter().enumerate() {
        slots.put(sequence, token)?;
    }
    let (table, rows) = (random(&[8, 48], 1)?, random(&[2, 48], 2)?);
    let own = (Tensor::new(&[9u32, 1], &target())?, on_target(&rows)?);
    for dtype in [DType::BF16, DType::F32] {
        let found = slots.embed(&on_target(&table.to_dtype(dtype)?)?, Some((&own.0, &own.1)))?;
        let expected = Tensor::cat(&[table.narrow(0, 4, 1)?, rows.clone()], 0)?;
        assert_eq!(values(&found)?, values(&expected)?);
    }
    slots.put(1, 0)?;
    let found = slots.embed(&on_target(&table)?, None)?;
    assert_eq!(values(&found)?, values(&table.index_select(&Tensor::new(&[4u32, 0, 1], &Device::Cpu)?, 0)?)?);
    Ok(())
}
