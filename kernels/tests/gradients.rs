//! Every hand-written backward against central differences of its own forward.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use lathe_kernels::{
    Attention, BlockType, Blocks, ClampedSwiGlu, CrossEntropyStats, Dropout, ExpertLora, ExpertMatrices,
    Experts, FrozenLinear, LoraLinear, Mxfp4, Nf4, RopeTable, RouterSoftmax, Segment, Targets, TokenLosses,
    add_low_rank, linear, linear_cross_entropy, linear_cross_entropy_trainable,
    linear_cross_entropy_with_rows, rms_norm, rms_norm_frozen, rope, route, swiglu,
};

const EPS: f32 = 1e-2;

/// Deterministic values in −1..1.
fn values(shape: &[usize], seed: usize) -> Var {
    let count: usize = shape.iter().product();
    let values: Vec<f32> =
        (0..count).map(|i| ((i * 7919 + seed * 104_729 + 13) % 1009) as f32 / 504.5 - 1.0).collect();
    Var::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A scalar that weighs every output differently, so that no error cancels.
fn weigh(y: &Tensor) -> Tensor {
    (y * values(y.dims(), 99).as_tensor()).unwrap().sum_all().unwrap()
}

/// Checks d(loss)/d(var) element by element for every `var` that `loss` is a function of.
fn check(name: &str, vars: &[&Var], loss: impl Fn() -> Result<Tensor>) {
    let gradients = loss().unwrap().backward().unwrap();
    for (index, var) in vars.iter().enumerate() {
        let gradient =
            gradients.get(var).unwrap_or_else(|| panic!("{name}: no gradient for operand {index}"));
        let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        let original: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
        let scale = gradient.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        assert!(scale > 0.0 && scale.is_finite(), "{name}: gradient of operand {index} is {scale}");
        let evaluate = |i: usize, shift: f32| {
            let mut shifted = original.clone();
            shifted[i] += shift;
            var.set(&Tensor::from_vec(shifted, var.shape(), &Device::Cpu).unwrap()).unwrap();
            f64::from(loss().unwrap().to_scalar::<f32>().unwrap())
        };
        for (i, gradient) in gradient.iter().enumerate() {
            let numeric = (evaluate(i, EPS) - evaluate(i, -EPS)) / f64::from(2.0 * EPS);
            let error = (numeric - f64::from(*gradient)).abs() / f64::from(scale);
            assert!(error < 1e-2, "{name}: operand {index}, element {i}: {gradient} instead of {numeric}");
        }
        var.set(&Tensor::from_vec(original, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}

#[test]
fn linears() {
    let (x, w) = (values(&[5, 6], 1), values(&[4, 6], 2));
    check("linear", &[&x, &w], || Ok(weigh(&linear(&x, &w)?)));
    let bias = values(&[4], 3).as_tensor().clone();
    let frozen = FrozenLinear::new(&w, Some(&bias)).unwrap();
    check("frozen linear", &[&x], || Ok(weigh(&frozen.forward(&x)?)));
}

#[test]
fn a_frozen_weight_gets_no_gradient() {
    let (x, w) = (values(&[5, 6], 1), values(&[4, 6], 2));
    let frozen = FrozenLinear::new(&w, None).unwrap();
    let gradients = weigh(&frozen.forward(&x).unwrap()).backward().unwrap();
    assert!(gradients.get(&x).is_some() && gradients.get(&w).is_none());
}

#[test]
fn linears_in_nf4_equal_dense_ones_of_their_values() {
    // Two tiles of rows, and rows that begin inside a block.
    let (out_features, in_features) = (300, 96);
    let packed = Nf4::quantize(&values(&[out_features, in_features], 2), false).unwrap();
    let bias = values(&[out_features], 3).as_tensor().clone();
    let identity = Tensor::eye(in_features, candle_core::DType::F32, &Device::Cpu).unwrap();
    let plain = FrozenLinear::nf4(packed, None).unwrap().forward(&identity).unwrap();
    let dense = FrozenLinear::new(&plain.t().unwrap(), Some(&bias)).unwrap();
    let packed = Nf4::quantize(&values(&[out_features, in_features], 2), false).unwrap();
    let packed = FrozenLinear::nf4(packed, Some(&bias)).unwrap();
    assert_eq!(packed.shape(), dense.shape());
    let x = values(&[5, in_features], 1);
    let run = |linear: &FrozenLinear| {
        let y = linear.forward(&x).unwrap();
        let dx = weigh(&y).backward().unwrap().get(&x).unwrap().clone();
        [y, dx].map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap())
    };
    for (actual, expected) in run(&packed).iter().zip(run(&dense)) {
        let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let error = actual.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error <= 1e-5 * largest, "{error} of {largest}");
    }
}

#[test]
fn lora_linears() {
    let (x, w) = (values(&[5, 6], 1), values(&[4, 6], 2));
    let (a, b) = (values(&[2, 6], 3), values(&[4, 2], 4));
    let base = FrozenLinear::new(&w, None).unwrap();
    for dropout in [None, Some(Dropout { probability: 0.3, key: 5 })] {
        check("lora", &[&x, &a, &b], || Ok(weigh(&LoraLinear::forward(&base, &x, &a, &b, 1.7, dropout)?)));
    }
}

#[test]
fn a_dropout_drops_its_gradient_alike() {
    let x = values(&[5, 6], 1);
    let dropout = Dropout { probability: 0.4, key: 3 };
    check("dropout", &[&x], || Ok(weigh(&dropout.forward(&x)?)));
}

#[test]
fn an_update_for_inference_is_that_of_training() {
    let (w, a, b) = (values(&[7, 6], 1), values(&[2, 6], 2), values(&[7, 2], 3));
    let base = FrozenLinear::new(&w, None).unwrap();
    for num_rows in [1, 5] {
        let x = values(&[num_rows, 6], 4);
        let expected = LoraLinear::forward(&base, &x, &a, &b, 0.7, None).unwrap();
        let found = add_low_rank(&base.forward(&x).unwrap(), &x, &a, &b, 0.7).unwrap();
        let difference = (expected - found).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
    }
    assert!(add_low_rank(&values(&[1, 7], 1), &values(&[1, 5], 1), &a, &b, 1.0).is_err());
}

#[test]
fn norms_of_adapted_rows_are_those_of_the_merged_weight() {
    // More rows than exist at a time, dense and in NF4.
    let (out_features, in_features) = (300, 64);
    let (a, b) = (values(&[2, in_features], 3), values(&[out_features, 2], 4));
    let w = values(&[out_features, in_features], 2);
    let identity = Tensor::eye(in_features, candle_core::DType::F32, &Device::Cpu).unwrap();
    let packed = FrozenLinear::nf4(Nf4::quantize(&w, false).unwrap(), None).unwrap();
    for base in [FrozenLinear::new(&w, None).unwrap(), packed] {
        let merged = base.forward(&identity).unwrap().t().unwrap();
        let merged = (merged + (b.matmul(&a).unwrap() * 1.7).unwrap()).unwrap();
        let expected = merged.sqr().unwrap().sum(1).unwrap().sqrt().unwrap().to_vec1::<f32>().unwrap();
        let actual = base.adapted_row_norms(&a, &b, 1.7).unwrap().to_vec1::<f32>().unwrap();
        for (actual, expected) in actual.iter().zip(expected) {
            assert!((actual - expected).abs() <= 1e-5 * expected, "{actual}, not {expected}");
        }
    }
}

#[test]
fn norms() {
    let (x, w) = (values(&[3, 20], 1), values(&[20], 2));
    check("rms_norm", &[&x, &w], || Ok(weigh(&rms_norm(&x, &w, 1e-5)?)));
    check("rms_norm_frozen", &[&x], || Ok(weigh(&rms_norm_frozen(&x, &w.as_tensor().detach(), 1e-5)?)));
}

#[test]
fn rotations_and_activations() {
    let (x, y) = (values(&[4, 16], 1), values(&[4, 16], 2));
    let table = Arc::new(RopeTable::new(&[1.0, 0.3, 0.1, 0.02], 1.2, 50));
    let positions = Arc::new(vec![0, 3, 20, 49].into());
    check("rope", &[&x], || Ok(weigh(&rope(&x, &table, &positions)?)));
    check("swiglu", &[&x, &y], || Ok(weigh(&swiglu(&x, &y)?)));
}

/// Two sinks: one that takes most of the weight, one that takes next to none.
fn attentions(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> [Attention; 3] {
    let plain = Attention { num_heads, num_kv_heads, head_dim, scale: 0.4, window: None, sinks: None };
    let sinks: Vec<f32> = (0..num_heads).map(|head| 2.0 - 1.5 * head as f32).collect();
    let sinks = Tensor::from_vec(sinks, num_heads, &Device::Cpu).unwrap();
    let windowed = Attention { window: Some(3), ..plain.clone() };
    [Attention { sinks: Some(sinks), ..windowed.clone() }, windowed, plain]
}

#[test]
fn attention_over_segments_and_grouped_heads() {
    let (q, k, v) = (values(&[9, 16], 1), values(&[9, 8], 2), values(&[9, 8], 3));
    let segments = Arc::new(vec![Segment::square(0..3), Segment::square(3..9)].into());
    for attention in attentions(4, 2, 4) {
        check("attention", &[&q, &k, &v], || Ok(weigh(&attention.forward(&q, &k, &v, &segments)?)));
    }
}

#[test]
fn attention_over_more_than_one_block_of_queries_equals_the_plain_formula() {
    let tokens = 150;
    let (q, k, v) = (values(&[tokens, 8], 1), values(&[tokens, 8], 2), values(&[tokens, 8], 3));
    let largest =
        |t: Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    for mut attention in attentions(1, 1, 8) {
        attention.window = attention.window.map(|_| 70);
        let Attention { scale, window, .. } = attention;
        let plain = || -> Result<Tensor> {
            let hides = |query: usize, key: usize| key > query || window.is_some_and(|w| key + w <= query);
            let mask: Vec<f32> = (0..tokens * tokens)
                .map(|i| if hides(i / tokens, i % tokens) { f32::NEG_INFINITY } else { 0.0 })
                .collect();
            let mask = Tensor::from_vec(mask, (tokens, tokens), &Device::Cpu)?;
            let scores = ((q.matmul(&k.t()?)? * f64::from(scale))? + mask)?;
            let sink =
                attention.sinks.as_ref().map_or(f32::NEG_INFINITY, |sinks| sinks.to_vec1().unwrap()[0]);
            let sink = Tensor::full(sink, (tokens, 1), &Device::Cpu)?;
            let weights = Tensor::cat(&[scores, sink], 1)?.exp()?;
            weights.broadcast_div(&weights.sum_keepdim(1)?)?.narrow(1, 0, tokens)?.matmul(&v)
        };
        let segments = Arc::new(vec![Segment::square(0..tokens)].into());
        let ours = attention.forward(&q, &k, &v, &segments).unwrap();
        assert!(largest((&ours - plain().unwrap()).unwrap()) < 1e-5);
        let (expected, actual) =
            (weigh(&plain().unwrap()).backward().unwrap(), weigh(&ours).backward().unwrap());
        for var in [&q, &k, &v] {
            let (expected, actual) = (expected.get(var).unwrap(), actual.get(var).unwrap());
            assert!(largest((expected - actual).unwrap()) < 1e-4 * largest(expected.clone()));
        }
        // The last query alone, as in decoding.
        let segment = Segment { queries: 0..1, keys: 0..tokens };
        let last = q.narrow(0, tokens - 1, 1).unwrap();
        let one = attention.forward(&last, &k, &v, &Arc::new(vec![segment].into())).unwrap();
        assert!(largest((one - ours.narrow(0, tokens - 1, 1).unwrap()).unwrap()) < 1e-5);
    }
}

fn stats(tokens: TokenLosses) -> CrossEntropyStats {
    let mut stats = CrossEntropyStats::default();
    stats.add(&tokens.read().unwrap());
    stats
}

#[test]
fn cross_entropy() {
    let (h, w) = (values(&[5, 6], 1), values(&[9, 6], 2));
    let weights = [0.5, -2.0, 1.0, 0.0, 3.0];
    for weights in [None, Some(weights.as_slice())] {
        let targets = Targets { ids: &[0, 8, 3, 3, 1], weights };
        check("frozen projection", &[&h], || {
            linear_cross_entropy(&h, &FrozenLinear::new(&w, None)?, targets)?.0 * 0.5
        });
        check("trained projection", &[&h, &w], || Ok(linear_cross_entropy_trainable(&h, &w, targets)?.0));
        let rows = values(&[3, 6], 3);
        let ids = [2, 9, 10];
        check("projection with rows", &[&h, &rows], || {
            linear_cross_entropy_with_rows(&h, &FrozenLinear::new(&w, None)?, (&ids, &rows), targets)?.0 * 0.5
        });
    }
}

#[test]
fn rows_in_a_projection_equal_the_projection_with_those_rows() {
    let (h, w, rows) = (values(&[200, 6], 1), values(&[9, 6], 2), values(&[3, 6], 3));
    let targets: Vec<u32> = (0..200).map(|i| i * 7 % 11).collect();
    let (h, w) = (h.as_tensor(), w.as_tensor());
    let whole = [(0, 2, w), (0, 1, rows.as_tensor()), (3, 6, w), (1, 2, rows.as_tensor())];
    let whole: Vec<_> = whole.iter().map(|(start, len, of)| of.narrow(0, *start, *len).unwrap()).collect();
    let [whole, w] = [&Tensor::cat(&whole, 0).unwrap(), w].map(|w| FrozenLinear::new(w, None).unwrap());
    let (_, expected) = linear_cross_entropy(h, &whole, Targets::even(&targets)).unwrap();
    let (_, found) =
        linear_cross_entropy_with_rows(h, &w, (&[2, 9, 10], &rows), Targets::even(&targets)).unwrap();
    let [found, expected] = [found, expected].map(stats);
    assert!((found.loss_sum - expected.loss_sum).abs() < 1e-4, "{found:?} {expected:?}");
    assert_eq!((found.num_correct, found.num_tokens), (expected.num_correct, 200));
    let gap =
        linear_cross_entropy_with_rows(h, &w, (&[2, 10, 11], &rows), Targets::even(&targets)).err().unwrap();
    assert!(gap.to_string().contains("beside 9"), "{gap}");
}

#[test]
fn a_projection_in_bf16_is_that_of_its_values_in_f32() {
    let narrow = values(&[600, 6], 2).to_dtype(DType::BF16).unwrap();
    let [narrow, wide] = [&narrow, &narrow.to_dtype(DType::F32).unwrap()]
        .map(|weight| FrozenLinear::new(weight, None).unwrap());
    let h = Var::from_tensor(&values(&[300, 6], 1)).unwrap();
    let targets: Vec<u32> = (0..300).map(|i| i * 7 % 600).collect();
    let gradient = |loss: &Tensor| loss.backward().unwrap().get(&h).unwrap().clone();
    let product =
        |linear: &FrozenLinear| gradient(&linear.forward(&h).unwrap().sqr().unwrap().sum_all().unwrap());
    let far = |a: &Tensor, b: &Tensor| {
        let [a, b] = [a, b].map(|values| values.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        a.iter().zip(&b).map(|(a, b)| (a - b).abs() / b.abs().max(1e-3)).fold(0.0, f32::max)
    };
    assert!(far(&product(&narrow), &product(&wide)) < 1e-4);
    let [ours, theirs] =
        [&narrow, &wide].map(|linear| linear_cross_entropy(&h, linear, Targets::even(&targets)).unwrap());
    assert!(far(&gradient(&ours.0), &gradient(&theirs.0)) < 1e-4);
    assert!((stats(ours.1).loss_sum - stats(theirs.1).loss_sum).abs() < 1e-3);
}

#[test]
fn cross_entropy_in_chunks_equals_the_plain_formula() {
    let (h, w) = (values(&[300, 6], 1), values(&[50, 6], 2));
    let targets: Vec<u32> = (0..300).map(|i| i * 7 % 50).collect();
    let (loss, tokens) =
        linear_cross_entropy(&h, &FrozenLinear::new(&w, None).unwrap(), Targets::even(&targets)).unwrap();
    let logits: Vec<Vec<f32>> = h.matmul(&w.t().unwrap()).unwrap().to_vec2().unwrap();
    let mut expected = 0.0;
    let mut correct = 0;
    for (logits, target) in logits.iter().zip(&targets) {
        expected += logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln()
            - f64::from(logits[*target as usize]);
        correct += usize::from(logits.iter().all(|logit| *logit <= logits[*target as usize]));
    }
    let stats = stats(tokens);
    assert!((stats.loss_sum - expected).abs() < 1e-3, "{} {expected}", stats.loss_sum);
    assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - expected).abs() < 1e-2);
    assert_eq!((stats.num_correct, stats.num_tokens), (correct, 300));
}

/// Four experts of width 32 and inner width 32 in f32, and the same values packed as gpt-oss' own files and as GGUFs
/// have them.
fn experts(activation: ClampedSwiGlu) -> [Arc<Experts>; 3] {
    let (num_experts, width) = (4, 32);
    let packed = |outputs: usize, seed: usize| {
        let num_blocks = num_experts * outputs * width / 32;
        let blocks: Vec<u8> = (0..num_blocks * 16).map(|i| ((i * 7919 + seed) % 251) as u8).collect();
        let scales: Vec<u8> = (0..num_blocks).map(|i| 122 + (i % 3) as u8).collect();
        (blocks, scales)
    };
    let dense = |outputs: usize, (blocks, scales): &(Vec<u8>, Vec<u8>)| {
        let value = |i: usize| {
            let code = blocks[i / 2] >> (i % 2 * 4) & 15;
            let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
            let scale = 2f32.powi(i32::from(scales[i / 32]) - 127);
            if code < 8 { magnitude * scale } else { -magnitude * scale }
        };
        let values: Vec<f32> = (0..blocks.len() * 2).map(value).collect();
        let values = Tensor::from_vec(values, (num_experts, outputs, width), &Device::Cpu).unwrap();
        ExpertMatrices::Dense(values.transpose(1, 2).unwrap().contiguous().unwrap())
    };
    let (gate_up, down) = (packed(2 * width, 5), packed(width, 11));
    let (gate_up_bias, down_bias) = (values(&[num_experts, 2 * width], 7), values(&[num_experts, width], 8));
    let build = |first, second| {
        Arc::new(
            Experts::new((first, gate_up_bias.as_tensor()), (second, down_bias.as_tensor()), activation)
                .unwrap(),
        )
    };
    let from_dense = build(dense(2 * width, &gate_up), dense(width, &down));
    // Row after row into `parts` matrices in turns; of a block the first 16 codes become low nibbles, the last 16 high.
    let in_gguf = |(blocks, scales): &(Vec<u8>, Vec<u8>), parts: usize| {
        let mut bytes = vec![Vec::new(); parts];
        for (row, (block, scale)) in blocks.chunks_exact(16).zip(scales).enumerate() {
            let code = |i: usize| block[i / 2] >> (i % 2 * 4) & 15;
            bytes[row % parts].push(*scale);
            bytes[row % parts].extend((0..16).map(|i| code(i) | code(i + 16) << 4));
        }
        let matrix = |bytes: Vec<u8>| {
            let rows = bytes.len() / 17;
            Blocks::new(bytes, BlockType::Mxfp4, rows, width).unwrap()
        };
        ExpertMatrices::Blocks(bytes.into_iter().map(matrix).collect())
    };
    let from_gguf = build(in_gguf(&gate_up, 2), in_gguf(&down, 1));
    let mxfp4 = |(blocks, scales)| ExpertMatrices::Mxfp4(Mxfp4::new(blocks, scales, width).unwrap());
    [from_dense, build(mxfp4(gate_up), mxfp4(down)), from_gguf]
}

#[test]
fn routing_and_experts() {
    let logits = values(&[5, 4], 2);
    for softmax in [RouterSoftmax::Chosen, RouterSoftmax::All] {
        check("route", &[&logits], || Ok(weigh(&route(&logits, 2, softmax)?.weights)));
    }
    // A limit that nothing comes near, so that no difference crosses the clamp's edge.
    let unclamped = ClampedSwiGlu { alpha: 1.702, limit: 100.0, offset: 1.0 };
    for experts in experts(unclamped).into_iter().chain(experts(ClampedSwiGlu::PLAIN)) {
        let (x, logits) = (values(&[5, 32], 1), values(&[5, 4], 2));
        check("experts", &[&x, &logits], || {
            Ok(weigh(&experts.forward(&x, &route(&logits, 2, RouterSoftmax::Chosen)?)?))
        });
    }
}

#[test]
fn experts_with_low_rank_updates() {
    let unclamped = ClampedSwiGlu { alpha: 1.702, limit: 100.0, offset: 1.0 };
    // Rank 3 on gate and up, 2 and another 2 on down.
    let a = [values(&[4, 3, 32], 21), values(&[4, 2, 32], 22), values(&[4, 2, 32], 23)];
    let b = [values(&[4, 64, 3], 24), values(&[4, 32, 2], 25), values(&[4, 32, 2], 26)];
    for experts in experts(unclamped) {
        let (x, logits) = (values(&[5, 32], 1), values(&[5, 4], 2));
        let update = |i: usize| ExpertLora {
            a: a[i].as_tensor().clone(),
            b: b[i].as_tensor().clone(),
            scale: 0.2 + 0.1 * i as f64,
        };
        let forward = || {
            let routing = route(&logits, 2, RouterSoftmax::Chosen)?;
            let updates = experts.updates(&[update(0)], &[update(1), update(2)])?;
            Ok(weigh(&experts.forward_adapted(&x, &routing, &updates)?))
        };
        let vars = [&x, &logits, &a[0], &a[1], &a[2], &b[0], &b[1], &b[2]];
        check("adapted experts", &vars, forward);
    }
}

#[test]
fn an_update_is_that_of_its_own_expert() {
    let experts = &experts(ClampedSwiGlu::PLAIN)[0];
    let (x, logits) = (values(&[6, 32], 1), values(&[6, 4], 2));
    let routing = route(&logits, 1, RouterSoftmax::Chosen).unwrap();
    let chosen: std::collections::BTreeSet<u32> = routing.experts().unwrap().into_iter().collect();
    assert!(chosen.len() < 4, "some expert is to be left out");
    let (a, b) = (values(&[4, 2, 32], 3), values(&[4, 32, 2], 4));
    let update = ExpertLora { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 1.0 };
    let updates = experts.updates(&[], &[update]).unwrap();
    let y = experts.forward_adapted(&x, &routing, &updates).unwrap();
    let gradients = weigh(&y).backward().unwrap();
    for var in [&a, &b] {
        for expert in 0..4 {
            let gradient = gradients.get(var).unwrap().get(expert).unwrap().abs().unwrap().sum_all().unwrap();
            let learns = gradient.to_scalar::<f32>().unwrap() > 0.0;
            assert_eq!(learns, chosen.contains(&(expert as u32)), "expert {expert}");
        }
    }
    let wrong = ExpertLora { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 1.0 };
    assert!(experts.updates(&[wrong], &[]).is_err());
}

#[test]
fn a_token_runs_its_own_experts_only_and_packed_ones_equal_dense_ones() {
    let (x, logits) = (values(&[70, 32], 1), values(&[70, 4], 2));
    let routing = route(&logits, 2, RouterSoftmax::Chosen).unwrap();
    let clamped = ClampedSwiGlu { alpha: 1.702, limit: 1.5, offset: 1.0 };
    let [dense, packed @ ..] = experts(clamped).map(|experts| experts.forward(&x, &routing).unwrap());
    let largest =
        |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    let gradient = |y: &Tensor| weigh(y).backward().unwrap().get(&x).unwrap().clone();
    let dx = gradient(&dense);
    for packed in packed {
        assert!(largest(&(&dense - &packed).unwrap()) < 1e-5 * largest(&dense));
        assert!(largest(&(&dx - gradient(&packed)).unwrap()) < 1e-5 * largest(&dx));
    }
    // Each token alone gives what it gives among others.
    for token in [0, 33, 69] {
        let row = |t: &Tensor| t.narrow(0, token, 1).unwrap();
        let alone = experts(clamped)[0]
            .forward(&row(&x), &route(&row(&logits), 2, RouterSoftmax::Chosen).unwrap())
            .unwrap();
        assert!(largest(&(alone - row(&dense)).unwrap()) < 1e-5 * largest(&dense));
    }
}
