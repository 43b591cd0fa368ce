"""Writes a .gguf model as a Hugging Face folder of dequantised fp32 shards, for peers that read no GGUF.

gguf_to_hf.py --gguf MODEL.gguf --out DIR [--max-shard-size 200MB]
"""

import argparse
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from gguf import GGUFReader  # noqa: E402
from tokenizers import pre_tokenizers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-shard-size", default="200MB")
    args = parser.parse_args()

    source = {"pretrained_model_name_or_path": args.gguf.parent, "gguf_file": args.gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are dense by now, but transformers still calls the model quantised and would not save it.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(args.out, max_shard_size=args.max_shard_size)

    tokenizer = AutoTokenizer.from_pretrained(**source)
    if GGUFReader(args.gguf).fields["tokenizer.ggml.pre"].contents() == "smollm":
        # transformers drops what `pre` says: SmolLM splits every digit off first.
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
