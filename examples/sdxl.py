"""Stable Diffusion XL: the same picture without merging and with the default recipe.

Needs `pip install "catome[diffusers]"` and a GPU.
"""

import torch
from diffusers import StableDiffusionXLPipeline

from catome import attach


def draw(pipe, **call):
    return pipe(generator=torch.Generator().manual_seed(0), **call).images


def main(pipe, **call):
    unmerged = draw(pipe, **call)
    with attach(pipe) as session:  # "balanced"; attach(pipe, "fast") sees fewer keys, attach(pipe, "close") more
        merged = draw(pipe, **call)
        print(session.report())
        print(session.summary())
    return unmerged, merged


if __name__ == "__main__":
    model = "stabilityai/stable-diffusion-xl-base-1.0"
    pipe = StableDiffusionXLPipeline.from_pretrained(model, torch_dtype=torch.float16, variant="fp16").to("cuda")
    unmerged, merged = main(pipe, prompt="a lighthouse in a storm, oil on canvas", height=2048, width=2048)
    unmerged[0].save("sdxl-unmerged.png")
    merged[0].save("sdxl-merged.png")
