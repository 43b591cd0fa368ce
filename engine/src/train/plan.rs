use lathe_protocol::RunConfig;

use crate::{batch, rng};

/// One optimizer step's data: micro-batches of row indices.
pub type Window = Vec<Vec<usize>>;

/// Which rows each optimizer step sees, as a function of the config and the rows' lengths alone.
pub struct Plan<'a> {
    config: &'a RunConfig,
    lengths: Vec<usize>,
    pub total_steps: usize,
}

impl<'a> Plan<'a> {
    pub fn new(config: &'a RunConfig, lengths: Vec<usize>) -> Self {
        let mut plan = Self { config, lengths, total_steps: config.max_steps };
        if plan.total_steps == 0 {
            let whole = config.epochs.floor() as usize;
            let part = config.epochs - whole as f64;
            let whole_steps: usize = (0..whole).map(|epoch| plan.epoch(epoch).len()).sum();
            let part_steps =
                if part > 0.0 { (plan.epoch(whole).len() as f64 * part).ceil() as usize } else { 0 };
            plan.total_steps = whole_steps + part_steps;
        }
        plan
    }

    /// The windows of one epoch. Its last may be smaller; none is dropped.
    pub fn epoch(&self, epoch: usize) -> Vec<Window> {
        let order = if self.config.shuffle {
            rng::shuffled(self.lengths.len(), self.config.seed, epoch)
        } else {
            (0..self.lengths.len()).collect()
        };
        let sequences =
            batch::sequences(&self.lengths, &order, self.config.sequence_tokens(), self.config.packing);
        let batches: Vec<Vec<usize>> = sequences.chunks(self.config.batch_size).map(<[_]>::concat).collect();
        batches.chunks(self.config.grad_accum).map(<[_]>::to_vec).collect()
    }

    /// The windows of steps `first_step..total_steps`, with the epoch each is in (fraction included).
    pub fn windows(&self, first_step: usize) -> impl Iterator<Item = (f64, Window)> + '_ {
        (0..)
            .flat_map(|epoch| {
                let windows = self.epoch(epoch);
                let count = windows.len();
                windows
                    .into_iter()
                    .enumerate()
                    .map(move |(i, window)| (epoch as f64 + (i + 1) as f64 / count as f64, window))
            })
            .take(self.total_steps)
            .skip(first_step)
    }
}
