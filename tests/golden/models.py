"""Dumps tiny random models as Hugging Face folders, each with its logits: data/<name>/{config.json, model*.safetensors,
tokenizer.json, tokenizer_config.json, generation_config.json, expected.safetensors}.

| name              | family | embeddings | what else it covers                                                            |
|-------------------|--------|------------|--------------------------------------------------------------------------------|
| tiny-llama        | llama  | tied       | config.json in transformers v4 spelling                                        |
| tiny-llama3-rope  | llama  | untied     | llama3 rope scaling that changes every position; v5 spelling                   |
| tiny-qwen3        | qwen3  | tied       | q and k norms, heads * head_dim != hidden                                      |
| tiny-qwen3-untied | qwen3  | untied     | sharded weights with an index; the template in chat_template.jinja             |
| tiny-qwen2        | qwen2  | tied       | attention biases; config.json is gzip under its plain name                     |

Run: /opt/peers-venv/bin/python tests/golden/models.py
"""

import gzip
import json

import torch
from common import DATA, load_model, save_expected, write_json
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCAB_SIZE = 320
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

CORPUS = """\
The lathe turns the wood and the tool shapes what it turns. You are a helpful assistant. What is the capital of France?
The capital of France is Paris. Write a short poem about the sea and the wind. user system assistant
How do I sort a list in Python? Use sorted(list) for a new list or list.sort() to sort it in place.
Thank you! Is there anything else that I can help you with today? The answer to the question is forty-two.
""".splitlines()

# As Qwen splits text before byte-level BPE.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def randomise(model, seed):
    """Weights large enough that attention and logits are not flat; norms scattered around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            is_norm = "norm" in name
            std = 0.2 if is_norm or name.endswith("bias") else 0.15
            parameter.normal_(1.0 if is_norm else 0.0, std, generator=generator)


def save_tokenizer(tokenizer, folder, in_own_file):
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    wrapped.save_pretrained(folder, save_jinja_files=in_own_file)


def spell_as_v4(config):
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.0"
    return config


def save_model(name, config, seed, max_shard_size="1GB", num_tokens=80):
    folder = DATA / name
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    config.update({"dtype": torch.float32, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    model.generation_config = GenerationConfig(eos_token_id=[2, 0], pad_token_id=0, do_sample=True, temperature=0.7)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    save_tokenizer(TOKENIZER, folder, in_own_file=name == "tiny-qwen3-untied")
    if name == "tiny-llama":
        path = folder / "config.json"
        write_json(path, spell_as_v4(json.loads(path.read_text())), indent=2)
    model = load_model(name)  # what was saved is what is measured
    ids, logits = save_expected(model, folder / "expected.safetensors", num_tokens, seed)
    if name == "tiny-qwen2":
        path = folder / "config.json"
        path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    print(f"{name}: logits std {logits.std():.3f}, greatest {logits.abs().max():.2f}")


TOKENIZER = train_tokenizer()


def main():
    shape = dict(
        vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    plain_rope = {"rope_type": "default", "rope_theta": 10000.0}
    qwen_rope = {"rope_type": "default", "rope_theta": 1000000.0}
    llama3_rope = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip

    llama = LlamaConfig(**shape, head_dim=16, rms_norm_eps=1e-5, rope_parameters=plain_rope, tie_word_embeddings=True)
    save_model("tiny-llama", llama, seed=1)

    # Half as wide (and the last one a layer deeper), for the sake of the repository's size.
    narrow = shape | dict(hidden_size=32, intermediate_size=48)
    llama3 = LlamaConfig(**narrow, head_dim=16, rms_norm_eps=1e-5, rope_parameters=llama3_rope, tie_word_embeddings=False)
    save_model("tiny-llama3-rope", llama3, seed=2, num_tokens=100)

    qwen3 = Qwen3Config(**shape, head_dim=32, rope_parameters=qwen_rope, tie_word_embeddings=True)
    save_model("tiny-qwen3", qwen3, seed=3)

    deeper = narrow | dict(num_hidden_layers=3)
    untied = Qwen3Config(**deeper, head_dim=16, rope_parameters=qwen_rope, tie_word_embeddings=False)
    save_model("tiny-qwen3-untied", untied, seed=4, max_shard_size="100KB")

    qwen2 = Qwen2Config(**shape, rope_parameters=qwen_rope, tie_word_embeddings=True, use_sliding_window=False)
    save_model("tiny-qwen2", qwen2, seed=5)


if __name__ == "__main__":
    main()
