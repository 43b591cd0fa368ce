"""Dumps LoRA runs with two added tokens whose embedding rows learn (PEFT's `trainable_token_indices`). For tiny-qwen3,
which ties its head to the embedding, and tiny-qwen3-untied, in data/<name>/:

styles-init/                    the PEFT adapter the run starts from, with the tokenizer that has the tokens
expected_train_styles.json      {config, rows: [{ids, mask}], steps: [{loss, grad_norm, lr, loss_tokens}] x 8}
styles-final/                   adapter_model.safetensors after step 8
expected_styles.safetensors     `ids` (T) i64 with the new tokens among them, and `logits` (T, V) f32 after step 8

The rows are train.py's, each with a style's token behind the user's words, by turns. The embedding is resized for the
tokens; its two new rows are drawn here, since the rows of the adapter replace them. An untied head is left as it was: its
rows for the new tokens would be random and not saved, so nobody could compare with them.

Run (after models.py): /opt/peers-venv/bin/python tests/golden/styles.py
"""

import json

import torch
from common import DATA, LINEARS, add_lora, load_model, load_tokenizer, save_adapter, write_json
from safetensors.torch import load_file, save_file
from train import CONVERSATIONS, PACKED, train

TOKENS = ["<|terse|>", "<|detailed|>"]
CONFIG = PACKED | dict(max_steps=8)


def styled(conversation, token):
    return [
        turn | {"content": turn["content"] + token} if turn["role"] == "user" else turn for turn in conversation
    ]


def encode(tokenizer, messages):
    out = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    return {"ids": list(out["input_ids"]), "mask": list(out["assistant_masks"])}


def resized(name, num_tokens):
    model = load_model(name)
    head = None if model.config.tie_word_embeddings else model.lm_head.weight.detach().clone()
    model.resize_token_embeddings(num_tokens, mean_resizing=False)
    generator = torch.Generator().manual_seed(31)
    with torch.no_grad():
        model.get_input_embeddings().weight[-len(TOKENS) :].normal_(0.0, 0.15, generator=generator)
    if head is not None:
        model.lm_head = torch.nn.Linear(head.shape[1], head.shape[0], bias=False)
        model.lm_head.weight = torch.nn.Parameter(head)
    return model


def dump(name):
    folder = DATA / name
    tokenizer = load_tokenizer(name)
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    token_ids = tokenizer.convert_tokens_to_ids(TOKENS)
    rows = [encode(tokenizer, styled(turns, TOKENS[i % 2])) for i, turns in enumerate(CONVERSATIONS)]

    torch.manual_seed(21)
    model = add_lora(
        resized(name, len(tokenizer)), name, LINEARS, lora_dropout=0.0, trainable_token_indices=token_ids
    )
    save_adapter(model, folder / "styles-init")
    tokenizer.save_pretrained(folder / "styles-init")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = train(model, rows, CONFIG, [{"params": trainable, "weight_decay": CONFIG["weight_decay"]}])
    write_json(folder / "expected_train_styles.json", {"config": CONFIG, "rows": rows, "steps": steps})
    final = folder / "styles-final"
    save_adapter(model, final)
    (final / "adapter_config.json").unlink()

    ids = torch.tensor((rows[2]["ids"] + token_ids + rows[9]["ids"])[:96])
    with torch.no_grad():
        logits = model(ids[None]).logits[0].float()
    save_file({"ids": ids, "logits": logits.contiguous()}, folder / "expected_styles.safetensors")
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    before, after = (load_file(path / "adapter_model.safetensors")[key] for path in (folder / "styles-init", final))
    print(f"{name}: the new rows move by {(after - before).abs().max().item():.4f}, {json.dumps(steps[-1])}")
    print("  ", sorted(key for key in load_file(final / "adapter_model.safetensors") if "lora" not in key))


if __name__ == "__main__":
    dump("tiny-qwen3")
    dump("tiny-qwen3-untied")
