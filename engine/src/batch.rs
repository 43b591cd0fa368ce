//! Rows into batches: packed, never padded.

use std::sync::Arc;

use lathe_kernels::Segment;

use crate::tokenize::TokenizedRow;

/// One forward pass's tokens: several examples end to end, each attending to itself only.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// (T)
    pub ids: Vec<u32>,
    /// Position of each token in its own example, (T).
    pub positions: Arc<Vec<u32>>,
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

/// Lays rows end to end. Token t is predicted from t − 1, so a row's first token is never trained.
pub fn pack<'a>(rows: impl IntoIterator<Item = &'a TokenizedRow>) -> Batch {
    let mut ids = Vec::new();
    let mut positions = Vec::new();
    let mut segments = Vec::new();
    let mut loss_positions = Vec::new();
    let mut targets = Vec::new();
    for row in rows {
        let start = ids.len();
        ids.extend_from_slice(&row.ids);
        positions.extend(0..row.ids.len() as u32);
        segments.push(Segment::square(start..ids.len()));
        for (t, (id, learns)) in row.ids.iter().zip(&row.loss_mask).enumerate().skip(1) {
            if *learns {
                loss_positions.push((start + t - 1) as u32);
                targets.push(*id);
            }
        }
    }
    Batch { ids, positions: Arc::new(positions), segments: Arc::new(segments), loss_positions, targets }
}

/// Groups rows, in order, into sequences: by next-fit into `max_seq_len` tokens when packing, else one a row.
pub fn sequences(lengths: &[usize], order: &[usize], max_seq_len: usize, packing: bool) -> Vec<Vec<usize>> {
    let mut sequences: Vec<Vec<usize>> = Vec::new();
    let mut filled = 0;
    for row in order {
        let length = lengths[*row];
        match sequences.last_mut() {
            Some(sequence) if packing && filled + length <= max_seq_len => {
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
        };
        let batch = pack(&[row(&[1, 2, 3], &[true, false, true]), row(&[4, 5], &[true, true])]);
        assert_eq!(batch.ids, [1, 2, 3, 4, 5]);
        assert_eq!(*batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(*batch.segments, [Segment::square(0..3), Segment::square(3..5)]);
        assert_eq!((batch.loss_positions, batch.targets), (vec![1, 3], vec![3, 5]));
    }
}
