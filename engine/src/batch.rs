//! Rows into batches: packed, never padded.

use std::{ops::Range, sync::Arc};

use lathe_kernels::{Positions, Segment};

use crate::tokenize::{TokenizedRow, Tokens};

/// One forward pass's tokens: several examples end to end, each attending to itself only.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// (T)
    pub ids: Vec<u32>,
    /// Position of each token in its own example, (T).
    pub positions: Arc<Positions>,
    pub segments: Arc<Vec<Segment>>,
    /// The tokens whose hidden state predicts a trained token, (N).
    pub loss_positions: Vec<u32>,
    /// What each of them should predict, (N).
    pub targets: Vec<u32>,
}

impl Batch {
    pub fn num_loss_tokens(&self) -> usize {
        self.targets.len()
    }
}

/// Where one pair's two sides are among a batch's targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairTargets {
    /// The chosen side's prompt, where it is a target.
    pub prompt: Range<usize>,
    pub chosen: Range<usize>,
    pub rejected: Range<usize>,
}

/// Lays rows end to end. Token t is predicted from t − 1, so a row's first token is never trained.
pub fn pack<'a>(rows: impl IntoIterator<Item = &'a TokenizedRow>) -> Batch {
    let mut laid = Laid::default();
    for row in rows {
        laid.add(&row.ids, |t| row.loss_mask[t]);
    }
    laid.batch()
}

/// Lays pairs end to end, each its chosen side and then its rejected one. `with_prompts` makes targets of the chosen
/// sides' prompts, too.
pub fn pack_pairs<'a>(
    pairs: impl IntoIterator<Item = (&'a TokenizedRow, &'a Tokens)>,
    with_prompts: bool,
) -> (Batch, Vec<PairTargets>) {
    let mut laid = Laid::default();
    let mut found = Vec::new();
    for (row, rejected) in pairs {
        let of_chosen = laid.add(&row.ids, |t| with_prompts || row.loss_mask[t]);
        // An answer is the end of its side.
        let answer = of_chosen.end - row.loss_mask.iter().filter(|learned| **learned).count();
        found.push(PairTargets {
            prompt: of_chosen.start..answer,
            chosen: answer..of_chosen.end,
            rejected: laid.add(&rejected.ids, |t| rejected.loss_mask[t]),
        });
    }
    (laid.batch(), found)
}

/// A batch in the making.
#[derive(Default)]
struct Laid {
    ids: Vec<u32>,
    positions: Vec<u32>,
    segments: Vec<Segment>,
    loss_positions: Vec<u32>,
    targets: Vec<u32>,
}

impl Laid {
    /// Where its targets are among all.
    fn add(&mut self, ids: &[u32], learns: impl Fn(usize) -> bool) -> Range<usize> {
        let (start, first_target) = (self.ids.len(), self.targets.len());
        self.ids.extend_from_slice(ids);
        self.positions.extend(0..ids.len() as u32);
        self.segments.push(Segment::square(start..self.ids.len()));
        for (t, id) in ids.iter().enumerate().skip(1).filter(|(t, _)| learns(*t)) {
            self.loss_positions.push((start + t - 1) as u32);
            self.targets.push(*id);
        }
        first_target..self.targets.len()
    }

    fn batch(self) -> Batch {
        let Self { ids, positions, segments, loss_positions, targets } = self;
        let positions = Arc::new(positions.into());
        Batch { ids, positions, segments: Arc::new(segments), loss_positions, targets }
    }
}

/// Groups rows, in order, into sequences: by next-fit into `capacity` tokens when packing, else one a row.
pub fn sequences(lengths: &[usize], order: &[usize], capacity: usize, packing: bool) -> Vec<Vec<usize>> {
    let mut sequences: Vec<Vec<usize>> = Vec::new();
    let mut filled = 0;
    for row in order {
        let length = lengths[*row];
        match sequences.last_mut() {
            Some(sequence) if packing && filled + length <= capacity => {
                sequence.push(*row);
                filled += length;
            }
            _ => {
                sequences.push(vec![*row]);
                filled = length;
            }
        }
    }
    sequences
}

/// How many [`sequences`] there are.
pub fn count_sequences(lengths: &[usize], order: &[usize], max_seq_len: usize, packing: bool) -> usize {
    if !packing {
        return order.len();
    }
    let (mut count, mut filled) = (0, 0);
    for row in order {
        if count > 0 && filled + lengths[*row] <= max_seq_len {
            filled += lengths[*row];
        } else {
            count += 1;
            filled = lengths[*row];
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_fit_keeps_the_order_and_the_limit() {
        let lengths = [3, 4, 5, 2, 9];
        assert_eq!(sequences(&lengths, &[0, 1, 2, 3, 4], 8, true), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(count_sequences(&lengths, &[0, 1, 2, 3, 4], 8, true), 3);
        assert_eq!(sequences(&lengths, &[2, 0], 8, false), [vec![2], vec![0]]);
    }

    #[test]
    fn a_row_is_predicted_from_its_own_tokens_only() {
        let row = |ids: &[u32], mask: &[bool]| TokenizedRow {
            row: 0,
            line: 1,
            ids: ids.to_vec(),
            loss_mask: mask.to_vec(),
            rejected: None,
        };
        let batch = pack(&[row(&[1, 2, 3], &[true, false, true]), row(&[4, 5], &[true, true])]);
        assert_eq!(batch.ids, [1, 2, 3, 4, 5]);
        assert_eq!(**batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(*batch.segments, [Segment::square(0..3), Segment::square(3..5)]);
        assert_eq!((batch.loss_positions, batch.targets), (vec![1, 3], vec![3, 5]));
    }

    #[test]
    fn a_pairs_answers_are_found_among_the_targets() {
        let chosen = vec![false, false, true, true];
        let rejected = Tokens { ids: vec![1, 2, 5], loss_mask: vec![false, false, true] };
        let row = TokenizedRow { ids: vec![1, 2, 3, 4], loss_mask: chosen, ..TokenizedRow::default() };
        let pair = || [(&row, &rejected), (&row, &rejected)];
        let (batch, found) = pack_pairs(pair(), false);
        assert_eq!(batch.targets, [3, 4, 5, 3, 4, 5]);
        assert_eq!(batch.segments.len(), 4);
        assert_eq!(found[1], PairTargets { prompt: 3..3, chosen: 3..5, rejected: 5..6 });
        let (batch, found) = pack_pairs(pair(), true);
        assert_eq!(
            (batch.targets, batch.loss_positions),
            (vec![2, 3, 4, 5, 2, 3, 4, 5], vec![0, 1, 2, 5, 7, 8, 9, 12])
        );
        assert_eq!(found[0], PairTargets { prompt: 0..1, chosen: 1..3, rejected: 3..4 });
    }
}
