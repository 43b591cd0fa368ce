//! AdamW with moments in 8 bits against bitsandbytes (tests/golden/adamw8bit.py).
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor, Var};
use lathe_kernels::{AdamW, AdamWParams, MomentType, Moments};

/// What the golden's steps are made with.
const LEARNING_RATE: f64 = 1e-2;
const WEIGHT_DECAY: f64 = 0.1;
const NAMES: [&str; 2] = ["coded", "small"];

fn golden() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/adamw8bit.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// The parameters after the golden's steps, by name.
fn after_ten_steps(golden: &HashMap<String, Tensor>, moments: MomentType) -> (Vec<Vec<f32>>, AdamW) {
    let vars = NAMES.map(|name| (Var::from_tensor(&golden[&format!("{name}.start")]).unwrap(), WEIGHT_DECAY));
    let mut optimizer = AdamW::new(AdamWParams::default(), vars.to_vec(), moments).unwrap();
    let gradients = NAMES.map(|name| &golden[&format!("{name}.gradients")]);
    for step in 0..gradients[0].dim(0).unwrap() {
        optimizer.clear_gradients().unwrap();
        for (i, steps) in gradients.iter().enumerate() {
            let gradient = steps.get(step).unwrap().to_dtype(DType::F32).unwrap();
            optimizer.add_gradient(i, &gradient).unwrap();
        }
        optimizer.step(1.0, LEARNING_RATE).unwrap();
    }
    (vars.iter().map(|(var, _)| floats(var)).collect(), optimizer)
}

fn mean_distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / a.len() as f32
}

#[test]
fn ten_steps_with_moments_in_8_bits_equal_those_of_bitsandbytes() {
    let golden = golden();
    let (found, optimizer) = after_ten_steps(&golden, MomentType::Dynamic8);
    for (name, found) in NAMES.iter().zip(&found) {
        let expected = floats(&golden[&format!("{name}.final")]);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let off = (found - expected).abs();
            assert!(off <= 1e-6 + 1e-5 * expected.abs(), "{name}[{i}] is {found}, expected {expected}");
        }
    }
    let moments = optimizer.moments().unwrap();
    let [Moments::Dynamic8 { m, v }, Moments::F32 { .. }] = &*moments else {
        panic!("tensors of 4096 elements on are kept in 8 bits, smaller ones are not")
    };
    for (moment, name) in [(m, "exp_avg"), (v, "exp_avg_sq")] {
        let codes: Vec<u8> = golden[&format!("coded.{name}")].to_vec1().unwrap();
        let wrong = moment.codes.iter().zip(&codes).filter(|(found, expected)| found != expected).count();
        assert!(wrong <= 4, "{wrong} codes of {name} differ");
        let scales = floats(&golden[&format!("coded.{name}.absmax")]);
        for (found, expected) in moment.scales.iter().zip(scales) {
            assert!((found / expected - 1.0).abs() < 1e-6, "{name}: {found}, expected {expected}");
        }
    }
}

#[test]
fn moments_in_8_bits_stay_closer_to_those_in_f32_than_bitsandbytes_on_a_cpu() {
    let golden = golden();
    let (coded, _) = after_ten_steps(&golden, MomentType::Dynamic8);
    let (plain, _) = after_ten_steps(&golden, MomentType::F32);
    let on_a_cpu = floats(&golden["coded.final_cpu"]);
    let (ours, theirs) = (mean_distance(&coded[0], &plain[0]), mean_distance(&on_a_cpu, &plain[0]));
    assert!(0.0 < ours && ours < theirs, "{ours} from f32, bitsandbytes on a CPU {theirs}");
    assert_eq!(coded[1], plain[1], "the small tensor");
}
