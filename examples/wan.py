"""Wan 2.1: a video with the default recipe, which merges within frames.

Needs `pip install "catome[diffusers]" ftfy imageio imageio-ffmpeg` and a GPU.
"""

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

from catome import attach


def main(pipe, **call):
    with attach(pipe) as session:
        frames = pipe(generator=torch.Generator().manual_seed(0), **call).frames
        print(session.summary())
    return frames


if __name__ == "__main__":
    pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", torch_dtype=torch.bfloat16).to("cuda")
    frames = main(pipe, prompt="waves break at a lighthouse", height=480, width=832, num_frames=81)
    export_to_video(frames[0], "wan.mp4", fps=16)
