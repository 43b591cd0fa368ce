use std::sync::OnceLock;

use candle_core::{Tensor, Var};

use super::{Embedding, Model, OutputHead};
use crate::{Error, Result};

/// Rows of the embedding table that an adapter brings (PEFT's trainable tokens): in place of the table's own, or behind
/// its last. A tied head has them too; a head of its own keeps its rows, so that it never writes tokens behind them.
pub struct TokenRows {
    /// The tokens they belong to, (K).
    pub ids: Vec<u32>,
    /// (K,C)
    pub rows: Var,
    on_device: OnceLock<OnDevice>,
}

/// What is told of the rows where they lie, once.
struct OnDevice {
    /// (K)
    ids: Tensor,
    /// Of every token its column among the table's logits and these rows' behind them.
    columns: Tensor,
}

impl TokenRows {
    fn place_of(&self, id: u32) -> Option<usize> {
        self.ids.iter().position(|own| *own == id)
    }

    /// Logits (T,V) of the table and those of these rows as one, by token. Shapes: h (T,C) -> (T,V or more).
    pub(super) fn join_logits(&self, h: &Tensor, logits: &Tensor) -> Result<Tensor> {
        let own = h.matmul(&self.rows.to_dtype(h.dtype())?.t()?)?;
        let columns = &self.told(logits.dim(1)?)?.columns;
        Ok(Tensor::cat(&[logits, &own], 1)?.index_select(columns, 1)?)
    }

    /// The tokens (K) and the rows (K,C) beside a table of `table_size` rows.
    pub(super) fn on_device(&self, table_size: usize) -> Result<(&Tensor, &Tensor)> {
        Ok((&self.told(table_size)?.ids, self.rows.as_tensor()))
    }

    fn told(&self, table_size: usize) -> Result<&OnDevice> {
        let Some(known) = self.on_device.get() else {
            let table_size = table_size as u32;
            let end = self.ids.iter().map(|id| id + 1).fold(table_size, u32::max);
            let column = |id| self.place_of(id).map_or(id, |place| table_size + place as u32);
            let upload = |values: Vec<u32>| Tensor::new(values, self.rows.device());
            let columns = upload((0..end).map(column).collect())?;
            let made = OnDevice { ids: upload(self.ids.clone())?, columns };
            return Ok(self.on_device.get_or_init(|| made));
        };
        Ok(known)
    }
}

impl Model {
    /// Puts rows for the tokens `ids` beside the embedding table, which stays as it is.
    ///
    /// Errors: rows of another width or number; ids that occur twice, or leave a gap behind the table's last row; a
    /// model that has such rows already.
    pub fn set_token_rows(&mut self, ids: Vec<u32>, rows: &Tensor) -> Result<()> {
        let (vocab_size, width) = (self.config.vocab_size, self.config.hidden_size);
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let behind = sorted.iter().filter(|id| **id as usize >= vocab_size);
        let follow = behind.enumerate().all(|(place, id)| *id as usize == vocab_size + place);
        if rows.dims() != [ids.len(), width] || sorted.len() != ids.len() || ids.is_empty() || !follow {
            return Err(Error::model(format!(
                "Rows of shape {:?} for tokens {ids:?} do not fit an embedding of {vocab_size} x {width}",
                rows.dims()
            )));
        }
        if self.token_rows.is_some() {
            return Err(Error::model("Two adapters with tokens of their own cannot be used together"));
        }
        self.token_rows = Some(TokenRows { ids, rows: self.compute.var(rows)?, on_device: OnceLock::new() });
        Ok(())
    }

    /// Looks up tokens: ids (T) -> (T,C).
    ///
    /// Gradient: reaches the rows of tokens an adapter brings, and a table that learns.
    /// Errors: an id beyond the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.check_ids(ids)?;
        let own = self.token_rows.as_ref().filter(|own| ids.iter().any(|id| own.ids.contains(id)));
        let Some(own) = own else { return self.look_up(ids) };
        // Each token takes its row of the table's (T,C) or of the adapter's (K,C) below it.
        let num_tokens = ids.len() as u32;
        let of_table: Vec<u32> =
            ids.iter().map(|id| if own.place_of(*id).is_some() { 0 } else { *id }).collect();
        let own_rows = own.rows.to_dtype(self.compute.dtype)?;
        let both = Tensor::cat(&[&self.look_up(&of_table)?, &own_rows], 0)?;
        let places = (0..).zip(ids);
        let places: Vec<u32> =
            places.map(|(t, id)| own.place_of(*id).map_or(t, |place| num_tokens + place as u32)).collect();
        Ok(both.index_select(&Tensor::new(places, both.device())?, 0)?)
    }

    /// Errors: an id beyond the vocabulary.
    pub(super) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let place_of = |id: u32| self.token_rows.as_ref().and_then(|own| own.place_of(id));
        let vocab_size = self.config.vocab_size;
        match ids.iter().find(|id| **id as usize >= vocab_size && place_of(**id).is_none()) {
            Some(id) => {
                Err(Error::model(format!("Token id {id} lies beyond the model's vocabulary of {vocab_size}")))
            }
            None => Ok(()),
        }
    }

    /// Rows of the table.
    fn look_up(&self, ids: &[u32]) -> Result<Tensor> {
        let table: &Tensor = match &self.embedding {
            Embedding::Frozen(table) => table,
            Embedding::Trainable(table) => table,
            Embedding::Quantized(table) => return Ok(table.rows(ids)?),
        };
        Ok(table.index_select(&Tensor::new(ids, table.device())?, 0)?.to_dtype(self.compute.dtype)?)
    }

    /// The rows that a tied head has beside the table's.
    pub(super) fn head_rows(&self) -> Option<&TokenRows> {
        self.token_rows.as_ref().filter(|_| matches!(self.head, OutputHead::Tied))
    }
}
