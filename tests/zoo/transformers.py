"""Every tiny transformer of diffusers by its name.

`ARCHITECTURES` are run through everything; `MORE_ARCHITECTURES` add further blocks and ways to call the same ones, and
`CALLED_OTHERWISE` more of such ways, which have no row in the table of the docs.
"""

from itertools import product

from running import SCOPES
from zoo.architecture import Architecture
from zoo.flux_kin import (
    FIBO,
    FIBO_EDIT,
    FLUX3,
    FLUX3_WITH_REFERENCE,
    IDEOGRAM4,
    KREA2,
    LONGCAT_IMAGE,
    LONGCAT_IMAGE_EDIT,
    OVIS_IMAGE,
)
from zoo.joint_images import AURA_FLOW, CHROMA, COGVIEW3, GLM_IMAGE, HUNYUAN_DIT, PRX
from zoo.latent_images import COGVIEW4, DIT, HUNYUAN_IMAGE, PIXART, SD3
from zoo.more_videos import (
    COSMOS,
    COSMOS_VIDEO2WORLD,
    FRAMEPACK,
    HUNYUAN_VIDEO_15,
    LTX2,
    LTX2_I2V,
    MOTIF_VIDEO,
    SKYREELS,
    SKYREELS_FORCING,
)
from zoo.other_videos import ALLEGRO, ANY_FLOW, CONSIS_ID, EASY_ANIMATE, HELIOS, KANDINSKY5, KANDINSKY6
from zoo.packed_images import BRIA, FLUX, FLUX2, FLUX2_WITH_REFERENCE, FLUX_KONTEXT, QWEN_IMAGE, QWEN_IMAGE_EDIT
from zoo.qwen_kin import ERNIE_IMAGE, NUCLEUS_IMAGE, QWEN_IMAGE_21
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
    "Qwen-Image 2.1": QWEN_IMAGE_21,
    "ERNIE-Image": ERNIE_IMAGE,
    "Nucleus-Image": NUCLEUS_IMAGE,
    "Chroma": CHROMA,
    "AuraFlow": AURA_FLOW,
    "HunyuanDiT": HUNYUAN_DIT,
    "CogView3Plus": COGVIEW3,
    "PRX": PRX,
    "GLM-Image": GLM_IMAGE,
    "Kandinsky 5": KANDINSKY5,
    "Allegro": ALLEGRO,
    "ConsisID": CONSIS_ID,
    "EasyAnimate": EASY_ANIMATE,
    "Helios": HELIOS,
    "AnyFlow": ANY_FLOW,
    "Kandinsky 6": KANDINSKY6,
    "Flux.3": FLUX3,
    "Krea 2": KREA2,
    "Ideogram 4": IDEOGRAM4,
    "LongCat-Image": LONGCAT_IMAGE,
    "Ovis-Image": OVIS_IMAGE,
    "FIBO": FIBO,
    "HunyuanVideo 1.5": HUNYUAN_VIDEO_15,
    "LTX-2": LTX2,
    "SkyReels-V2": SKYREELS,
    "Cosmos": COSMOS,
    "FramePack": FRAMEPACK,
    "Motif-Video": MOTIF_VIDEO,
    "Z-Image": Z_IMAGE,
    "Lumina 2": LUMINA2,
    "HiDream": HIDREAM,
    "OmniGen": OMNIGEN,
}
CALLED_OTHERWISE: dict[str, Architecture] = {
    "Flux.3 with a reference": FLUX3_WITH_REFERENCE,
    "LongCat-Image-Edit": LONGCAT_IMAGE_EDIT,
    "FIBO Edit": FIBO_EDIT,
    "LTX-2 I2V": LTX2_I2V,
    "SkyReels-V2 forcing": SKYREELS_FORCING,
    "Cosmos Video2World": COSMOS_VIDEO2WORLD,
}
COMPILED_BY_BLOCKS = ("DiT", "SD3", "Flux", "Wan")
"""The compiler takes its time, so that it gets the blocks of these around attention, and the others as a whole: tokens
without text and with it, blocks of one kind and of two, an image and a video."""
ALL_ARCHITECTURES = ARCHITECTURES | MORE_ARCHITECTURES | CALLED_OTHERWISE
SCOPES_THAT_WORK = [
    (name, scope) for name, scope in product(ALL_ARCHITECTURES, SCOPES) if scope not in ALL_ARCHITECTURES[name].refused
]
