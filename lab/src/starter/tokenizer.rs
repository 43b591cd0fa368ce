//! The starter's tokenizer: byte-level BPE trained on its own corpus.

use anyhow::{Result, anyhow};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer, TokenizerBuilder,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::byte_level::ByteLevel,
};

/// In the order of their ids, 0, 1, 2.
const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Trains the vocabulary on `texts`.
pub fn train(texts: &[&str], vocab_size: usize) -> Result<Tokenizer> {
    let special = SPECIAL_TOKENS.map(|token| AddedToken::from(token, true));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::<
        ModelWrapper,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(BPE::default().into())
    .with_pre_tokenizer(Some(byte_level.into()))
    .with_decoder(Some(byte_level.into()))
    .build()
    .map_err(|error| anyhow!("{error}"))?;
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), texts.iter())
        .map_err(|error| anyhow!("training the tokenizer: {error}"))?;
    Ok(tokenizer.into())
}
