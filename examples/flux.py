"""Flux with int8 weights, merged, and compiled block by block.

Needs `pip install "catome[diffusers]" torchao` and a GPU.
"""

import torch
from diffusers import FluxPipeline
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from catome import attach
from catome_adapters import compile_blocks


def main(pipe, *, backend="inductor", **call):
    quantize_(pipe.transformer, Int8WeightOnlyConfig())
    with attach(pipe) as session:
        compile_blocks(pipe, fullgraph=True, backend=backend)
        # The first picture compiles; the others run what it has compiled.
        pictures = [pipe(generator=torch.Generator().manual_seed(seed), **call).images for seed in range(3)]
        print(session.summary())
    return pictures


if __name__ == "__main__":
    pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16).to("cuda")
    call = {"prompt": "a lighthouse in a storm", "height": 1536, "width": 1536, "num_inference_steps": 28}
    for number, images in enumerate(main(pipe, **call)):
        images[0].save(f"flux-{number}.png")
