use lathe_protocol::RunConfig;

use rand::seq::SliceRandom as _;

use crate::{batch, corpus::Share, rng};

/// One optimizer step's data: micro-batches of row indices.
pub type Window = Vec<Vec<usize>>;

/// Which rows each optimizer step sees, as a function of the config, the rows' lengths and the files' weights alone.
pub struct Plan<'a> {
    config: &'a RunConfig,
    lengths: Vec<usize>,
    shares: Vec<Share>,
    pub total_steps: usize,
}

impl<'a> Plan<'a> {
    pub fn new(config: &'a RunConfig, lengths: Vec<usize>, shares: Vec<Share>) -> Self {
        let mut plan = Self { config, lengths, shares, total_steps: config.max_steps };
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

    /// The rows of one epoch, in the files' order: each as often as its file's weight says whole, and for the fraction
    /// so many of them, drawn anew each epoch.
    pub fn drawn(shares: &[Share], seed: u64, epoch: usize) -> Vec<usize> {
        let mut drawn = Vec::new();
        for (index, Share { rows, weight }) in shares.iter().enumerate() {
            let times = weight.floor() as usize;
            (0..times).for_each(|_| drawn.extend(rows.clone()));
            let count = (weight.fract() * rows.len() as f64).round() as usize;
            if count > 0 {
                let mut some: Vec<usize> = rows.clone().collect();
                some.shuffle(&mut rng::stream(seed, &format!("mix {index}"), epoch as u64));
                some.truncate(count);
                some.sort_unstable();
                drawn.extend(some);
            }
        }
        drawn
    }

    /// The windows of one epoch. Its last may be smaller; none is dropped.
    pub fn epoch(&self, epoch: usize) -> Vec<Window> {
        let drawn = Self::drawn(&self.shares, self.config.seed, epoch);
        let order = if self.config.shuffle {
            rng::shuffled(drawn.len(), self.config.seed, epoch).into_iter().map(|at| drawn[at]).collect()
        } else {
            drawn
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_sees_the_rows_of_a_file_as_often_as_its_weight_says() {
        let share = |rows, weight| Share { rows, weight };
        let plain = Plan::drawn(&[share(0..5, 1.0)], 1, 0);
        assert_eq!(plain, [0, 1, 2, 3, 4]);
        let mixed = |seed, epoch| Plan::drawn(&[share(0..3, 2.0), share(3..103, 0.25)], seed, epoch);
        let drawn = mixed(1, 0);
        assert_eq!((drawn.len(), &drawn[..6]), (6 + 25, [0, 1, 2, 0, 1, 2].as_slice()));
        assert!(drawn[6..].windows(2).all(|pair| pair[0] < pair[1] && pair[0] >= 3));
        assert_eq!(drawn, mixed(1, 0));
        assert_ne!(drawn, mixed(1, 1));
        assert_ne!(drawn, mixed(2, 0));
        let more = Plan::drawn(&[share(0..10, 1.5)], 1, 0);
        assert!((0..10).all(|row| [1, 2].contains(&more.iter().filter(|drawn| **drawn == row).count())));
        assert_eq!(more.len(), 15);
    }
}
