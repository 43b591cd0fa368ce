//! Random numbers as functions of (seed, purpose, index): nothing to save, so a resumed run draws what an undisturbed
//! one would have drawn.

use rand::{SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

/// An independent stream for one purpose.
pub fn stream(seed: u64, purpose: &str, index: u64) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update(index.to_le_bytes());
    hasher.update(purpose.as_bytes());
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

/// A key for a counter-based mask.
pub fn key(seed: u64, purpose: &str, index: u64) -> u64 {
    use rand::RngCore as _;
    stream(seed, purpose, index).next_u64()
}

/// `0..len` in the order of epoch `epoch`.
pub fn shuffled(len: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.shuffle(&mut stream(seed, "shuffle", epoch as u64));
    order
}
