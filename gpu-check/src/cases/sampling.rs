//! Tokens drawn by the kernel against those drawn on the host.

use candle_core::{Result, Tensor};
use lathe_kernels::{Sampling, gpu};

use crate::twins::{on_target, random, target};

pub fn the_same_draws_take_the_same_tokens() -> Result<()> {
    let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
    let settings = [
        Sampling { temperature: 0.0, ..plain },
        plain,
        Sampling { temperature: 0.7, top_k: 1, ..plain },
        Sampling { temperature: 0.3, top_k: 40, ..plain },
        Sampling { top_p: 0.9, ..plain },
        Sampling { temperature: 1.5, top_p: 0.2, ..plain },
        Sampling { top_k: 50, top_p: 0.8, ..plain },
        Sampling { top_k: 5000, top_p: 0.0, ..plain },
    ];
    for vocab_size in [5, 100, 3001] {
        // Rounded to bf16 they have many equals; some are forbidden.
        let logits = (random(&[6, vocab_size], vocab_size as u64)? * 3.0)?;
        for sampling in settings {
            for forbidden in [&[][..], &[1, 4, 4_000_000]] {
                for draws in [[0.0, 0.1, 0.35, 0.5, 0.77, 0.999_9], [0.2; 6]] {
                    let found =
                        gpu::sampling::sample(sampling, &on_target(&logits.copy()?)?, forbidden, &draws)?;
                    let expected = sampling.sample(&logits, forbidden, &draws)?;
                    assert_eq!(found.to_vec1::<u32>()?, expected, "{sampling:?} of {vocab_size}");
                }
            }
        }
    }
    Ok(())
}

pub fn logits_that_are_no_numbers_are_not_drawn() -> Result<()> {
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
    let rows = [[f32::NAN, 1.0, f32::NAN], [f32::NAN; 3], [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]];
    let logits = Tensor::new(&rows, &target())?;
    let found = gpu::sampling::sample(sampling, &logits, &[], &[0.5; 3])?.to_vec1::<u32>()?;
    assert_eq!(found, [1, 0, 1]);
    Ok(())
}
