"""Measures llama.cpp on the CPU and prints one JSON line: {prefill_tokens_per_second, decode_tokens_per_second, load_seconds}.

llama_cpp.py --model GGUF --threads 2 --depth D --prefill N --decode M

Prefill: a prompt of N random tokens into an empty context. Decode: M greedy tokens, one at a time, after a prompt of D random tokens.
Random tokens keep the end token from stopping it. The model's weights are touched once before anything is timed; load_seconds is
opening the file.
"""

import sys
from pathlib import Path

# This file bears the package's name: without its folder on the path, the import below finds the package.
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import argparse  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import time  # noqa: E402

import llama_cpp  # noqa: E402
import numpy  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, default=512)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    args = parser.parse_args()

    start = time.perf_counter()
    num_ctx = max(args.depth + args.decode, args.prefill) + 8
    llama = llama_cpp.Llama(
        args.model, n_ctx=num_ctx, n_batch=512, n_threads=args.threads, n_threads_batch=args.threads, verbose=False
    )
    load_seconds = time.perf_counter() - start

    pick = random.Random(0)
    prompt = [pick.randrange(llama.n_vocab()) for _ in range(num_ctx)]
    llama.eval(prompt[:8])  # pages the weights in

    llama.reset()
    start = time.perf_counter()
    llama.eval(prompt[: args.prefill])
    prefill_seconds = time.perf_counter() - start

    llama.reset()
    llama.eval(prompt[: args.depth])
    start = time.perf_counter()
    for _ in range(args.decode):
        logits = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        llama.eval([int(numpy.ctypeslib.as_array(logits, shape=(llama.n_vocab(),)).argmax())])
    decode_seconds = time.perf_counter() - start

    report = {
        "prefill_tokens_per_second": args.prefill / prefill_seconds,
        "decode_tokens_per_second": args.decode / decode_seconds,
        "load_seconds": load_seconds,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
