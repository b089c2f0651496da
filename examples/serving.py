"""A loop that serves two models, with a session for each, and requests of any size.

Needs `pip install "catome[diffusers]"` and a GPU. Attach when the server starts: that compiles anew what is compiled.
"""

from contextlib import ExitStack

import torch
from diffusers import FluxPipeline, StableDiffusionXLPipeline

from catome import attach


def main(models, requests):
    with ExitStack() as stack:
        sessions = {name: stack.enter_context(attach(pipe, recipe)) for name, (pipe, recipe) in models.items()}
        for name, request in requests:
            pipe, _ = models[name]
            images = pipe(**request).images
            print(f"{name}, {request['height']} x {request['width']}:\n{sessions[name].summary()}")
            yield images


if __name__ == "__main__":
    half = {"torch_dtype": torch.bfloat16}
    sdxl = StableDiffusionXLPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0", **half).to("cuda")
    flux = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-schnell", **half).to("cuda")
    requests = [
        ("sdxl", {"prompt": "a lighthouse", "height": 2048, "width": 2048}),
        ("flux", {"prompt": "a lighthouse", "height": 2048, "width": 1536, "num_inference_steps": 4}),
        ("sdxl", {"prompt": "a harbor", "height": 1536, "width": 2688}),
    ]
    for number, images in enumerate(main({"sdxl": (sdxl, "fast"), "flux": (flux, "balanced")}, requests)):
        images[0].save(f"served-{number}.png")
