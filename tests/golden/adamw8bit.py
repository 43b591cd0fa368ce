"""Dumps bitsandbytes' AdamW8bit: its data types, blocks in them, and steps on fixed gradients. In data/adamw8bit.safetensors:

{signed, unsigned}.map             the 256 values of `create_dynamic_map`
{signed, unsigned}.{values, codes, absmax, read}    600 values, a block of zeros among them, coded and read back
{coded, small}.start               parameters: 4500 elements, whose moments are kept in 8 bits, and 300, kept in f32
{coded, small}.gradients           (10, elements) f16; their magnitudes span 2.5 decades
{coded, small}.final               the parameters after ten steps
coded.final_cpu                    the same with codes as bitsandbytes' CPU kernel finds them
coded.{exp_avg, exp_avg_sq}{, .absmax}              the state after them

Codes are the nearest ones, as in bitsandbytes' `default` backend and its CUDA kernels. Its CPU kernel rounds to one of 65536 equal steps first,
which near zero is coarser than the data types are; everything else here is its own code, run on the CPU.

Run: /opt/peers-venv/bin/python tests/golden/adamw8bit.py
"""

import bitsandbytes as bnb
import torch
from bitsandbytes.backends.cpu import ops
from bitsandbytes.functional import create_dynamic_map
from common import DATA
from safetensors.torch import save_file

STEPS = 10
BLOCK = 256
SETTINGS = dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
quantise_on_cpu = ops._quant_blockwise_fp32_direct


def quantise(values, code, absmax, codes, blocksize):
    """`quantize_blockwise` of bitsandbytes/backends/default/ops.py."""
    bounds = (code[:-1] + code[1:]) / 2
    for block in range(absmax.numel()):
        part = values.flatten()[block * blocksize : (block + 1) * blocksize]
        absmax[block] = part.abs().max()
        scaled = torch.clamp(part * (1 / absmax[block].clamp(min=1e-38)), -1, 1)
        codes.view(-1)[block * blocksize : (block + 1) * blocksize] = torch.bucketize(scaled, bounds).to(torch.uint8)


def decades(shape, generator):
    """Normal values whose magnitudes span five decades."""
    return torch.randn(shape, generator=generator) * 10 ** (-5 * torch.rand(shape, generator=generator))


def dump_blocks(generator):
    tensors = {}
    for name in ("signed", "unsigned"):
        code = create_dynamic_map(signed=name == "signed")
        values = decades(600, generator)
        values = values if name == "signed" else values.square()
        values[BLOCK : 2 * BLOCK] = 0
        values[3] = 0
        codes, absmax = torch.empty(600, dtype=torch.uint8), torch.empty(3)
        quantise(values, code, absmax, codes, BLOCK)
        read = bnb.functional.dequantize_blockwise(codes, absmax=absmax, code=code, blocksize=BLOCK)
        tensors |= {f"{name}.map": code, f"{name}.values": values, f"{name}.codes": codes}
        tensors |= {f"{name}.absmax": absmax, f"{name}.read": read}
    return tensors


def steps(start, gradients):
    """The parameters after a step on each of the gradients, and the optimizer's state of them."""
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = bnb.optim.AdamW8bit(parameters.values(), **SETTINGS)
    for step in range(STEPS):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][step].float()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}, optimizer.state[parameters["coded"]]


def main():
    generator = torch.Generator().manual_seed(8)
    tensors = dump_blocks(generator)
    start = {name: torch.randn(length, generator=generator) for name, length in (("coded", 4500), ("small", 300))}
    scales = {name: 10 ** (-2.5 * torch.rand(value.numel(), generator=generator)) for name, value in start.items()}
    gradients = {
        name: (torch.randn((STEPS, scale.numel()), generator=generator) * scale * 0.1).half()
        for name, scale in scales.items()
    }
    final_cpu, _ = steps(start, gradients)
    ops._quant_blockwise_fp32_direct = quantise
    final, state = steps(start, gradients)
    tensors |= {f"{name}.start": value for name, value in start.items()}
    tensors |= {f"{name}.gradients": value for name, value in gradients.items()}
    tensors |= {f"{name}.final": value for name, value in final.items()}
    tensors |= {"coded.final_cpu": final_cpu["coded"], "coded.exp_avg": state["state1"]}
    tensors |= {"coded.exp_avg.absmax": state["absmax1"], "coded.exp_avg_sq": state["state2"]}
    save_file(tensors | {"coded.exp_avg_sq.absmax": state["absmax2"]}, DATA / "adamw8bit.safetensors")

    plain = torch.nn.Parameter(start["coded"].clone())
    optimizer = torch.optim.AdamW([plain], **SETTINGS)
    for gradient in gradients["coded"]:
        plain.grad = gradient.float()
        optimizer.step()
    for name, value in (("codes of the CPU kernel", final_cpu["coded"]), ("moments in f32", plain.detach())):
        off = (value - final["coded"]).abs()
        print(f"{name}: off by {off.mean():.2e} on average, {off.max():.2e} at most")
    moved = (final["coded"] - start["coded"]).abs()
    print(f"moved by {moved.mean():.2e} on average")


if __name__ == "__main__":
    main()
