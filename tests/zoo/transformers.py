"""Every tiny transformer of diffusers by its name.

`ARCHITECTURES` are run through everything; `MORE_ARCHITECTURES` add further blocks and ways to call the same ones.
"""

from itertools import product

from running import SCOPES
from zoo.architecture import Architecture
from zoo.latent_images import COGVIEW4, DIT, HUNYUAN_IMAGE, PIXART, SD3
from zoo.packed_images import BRIA, FLUX, FLUX2, FLUX2_WITH_REFERENCE, FLUX_KONTEXT, QWEN_IMAGE, QWEN_IMAGE_EDIT
from zoo.single_streams import HIDREAM, LUMINA2, OMNIGEN, Z_IMAGE
from zoo.videos import CHRONO_EDIT, COGVIDEOX, HUNYUAN_VIDEO, HUNYUAN_VIDEO_I2V, LTX, WAN, WAN_TI2V

ARCHITECTURES: dict[str, Architecture] = {
    "DiT": DIT,
    "PixArt": PIXART,
    "SD3": SD3,
    "Flux": FLUX,
    "Qwen-Image": QWEN_IMAGE,
    "Wan": WAN,
    "Wan 2.2 TI2V": WAN_TI2V,
    "LTX": LTX,
    "CogVideoX": COGVIDEOX,
    "HunyuanVideo": HUNYUAN_VIDEO,
}
MORE_ARCHITECTURES: dict[str, Architecture] = {
    "Flux Kontext": FLUX_KONTEXT,
    "Flux.2": FLUX2,
    "Flux.2 with a reference": FLUX2_WITH_REFERENCE,
    "Qwen-Image-Edit": QWEN_IMAGE_EDIT,
    "HunyuanVideo I2V": HUNYUAN_VIDEO_I2V,
    "HunyuanImage": HUNYUAN_IMAGE,
    "ChronoEdit": CHRONO_EDIT,
    "CogView4": COGVIEW4,
    "Bria": BRIA,
    "Z-Image": Z_IMAGE,
    "Lumina 2": LUMINA2,
    "HiDream": HIDREAM,
    "OmniGen": OMNIGEN,
}
ALL_ARCHITECTURES = ARCHITECTURES | MORE_ARCHITECTURES
SCOPES_THAT_WORK = [
    (name, scope) for name, scope in product(ALL_ARCHITECTURES, SCOPES) if scope not in ALL_ARCHITECTURES[name].refused
]
