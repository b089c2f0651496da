"""Dense features of a timm ViT and of DINOv2, on half of the tokens of every block.

Needs `pip install "catome[timm]" transformers pillow`. Run it with a picture: `python examples/features.py cat.jpg`.
"""

import sys

import timm
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from catome import attach


def timm_features(model, images):
    return model.forward_features(images)


def dinov2_features(model, images):
    return model(pixel_values=images).last_hidden_state


@torch.no_grad()
def main(model, read, images):
    unmerged = read(model, images)
    with attach(model, "vit") as session:
        merged = read(model, images)
        print(session.summary())
    cosine = torch.cosine_similarity(merged, unmerged, dim=-1).mean()
    print(f"{tuple(merged.shape)} features, cosine to the unmerged ones {cosine:.3f}")
    return unmerged, merged


if __name__ == "__main__":
    name = "facebook/dinov2-base"
    images = AutoImageProcessor.from_pretrained(name)(Image.open(sys.argv[1]), return_tensors="pt")["pixel_values"]
    main(AutoModel.from_pretrained(name).eval(), dinov2_features, images)
    main(timm.create_model("vit_base_patch16_224.dino", pretrained=True).eval(), timm_features, images)
