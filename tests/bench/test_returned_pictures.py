"""What pipelines return, as pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from catome_bench.comparison.pictures import to_pictures

BYTES = torch.randint(256, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
FLOATS = BYTES / 255
IMAGES = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in BYTES]
ARRAYS = FLOATS.permute(0, 2, 3, 1).numpy()

KINDS = {
    "images": IMAGES,
    "arrays": ARRAYS,
    "arrays of bytes": BYTES.permute(0, 2, 3, 1).numpy(),
    "tensors": FLOATS,
    "bytes": BYTES,
    "list of tensors": list(FLOATS),
    "half precision": [FLOATS[0].double(), FLOATS[1]],
    "videos": [IMAGES[:1], IMAGES[1:]],
    "a video": FLOATS[None],
    "two videos": ARRAYS[:, None],
    "an output of pictures": SimpleNamespace(images=IMAGES),
    "an output of videos": SimpleNamespace(frames=[list(ARRAYS)]),
    "a tuple": (FLOATS, None),
    "a tuple of images": (IMAGES, None),
}


@pytest.mark.parametrize("output", KINDS.values(), ids=KINDS)
def test_all_kinds_are_the_same_pictures(output):
    pictures = to_pictures(output)
    assert pictures.dtype == torch.float32
    torch.testing.assert_close(pictures, FLOATS)


def test_gray_pictures_have_three_equal_channels():
    gray = to_pictures(FLOATS[:, :1])
    assert torch.equal(gray, FLOATS[:, :1].expand(-1, 3, -1, -1))
    assert to_pictures(Image.new("RGBA", (5, 4))).shape == (1, 3, 4, 5)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (None, TypeError, "nothing was drawn: NoneType; expected PIL images"),
        ([], TypeError, "nothing was drawn: list"),
        (torch.zeros(0, 3, 4, 4), TypeError, r"nothing was drawn: torch.Size\(\[0, 3, 4, 4\]\)"),
        (np.zeros((4, 4)), TypeError, r"nothing was drawn: \(4, 4\)"),
        (FLOATS.index_fill(1, torch.tensor([1]), float("inf")), ValueError, "is not finite"),
        (torch.rand(1, 4, 8, 8), ValueError, r"shape \(1, 4, 8, 8\) and values .*leave output_type=\"latent\" out"),
        (FLOATS * 2 - 1, ValueError, "values from -0.992 to 0.992; expected"),
    ],
)
def test_what_is_no_picture_is_refused(output, error, message):
    with pytest.raises(error, match=message):
        to_pictures(output)
