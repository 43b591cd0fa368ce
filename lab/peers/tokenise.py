"""Rows of chat into token ids, as a trainer on transformers does it: model folder, JSONL file."""

import json
import sys
import time

from transformers import AutoTokenizer

BATCH = 1000

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
started = time.perf_counter()
num_tokens = 0
with open(sys.argv[2], encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
for start in range(0, len(rows), BATCH):
    chats = [row["messages"] for row in rows[start : start + BATCH]]
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    # Offsets are what a loss mask is found by.
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    num_tokens += sum(map(len, encoded["input_ids"]))
print(json.dumps({"seconds": time.perf_counter() - started, "tokens": num_tokens}))
