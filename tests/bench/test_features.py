"""Features for the Frechet distance: the shipped UNet at its own size, and a model of timm from a folder."""

import pytest
import torch
from torch.nn import functional as F

from catome_bench.measure import features
from catome_bench.measure.features import open_features
from catome_bench.measure.frechet import picture_features
from zoo.class_pipelines import tiny_shipped
from zoo.noise import noise

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As `timm.models.save_for_hf` writes it."""
    folder = tmp_path_factory.mktemp("timm")
    with torch.random.fork_rng():
        model = timm.create_model("test_resnet", num_classes=5)
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return folder, model.eval()


@pytest.mark.parametrize(("size", "seen"), [((32, 48), 32), ((20, 30), 16), ((200, 300), 128), ((7, 9), 8)])
def test_the_shipped_unet_sees_squares_of_the_size_that_it_was_trained_for(monkeypatch, size, seen):
    pipe = tiny_shipped()
    monkeypatch.setattr(features, "load_shipped", lambda arch: pipe)
    picture = noise(3, *size).sigmoid()
    square = F.interpolate(picture[None], (seen, seen), mode="bilinear", antialias=True)
    measured = open_features(None).measure(picture)
    torch.testing.assert_close(measured, picture_features(pipe, square.clamp(0, 1)))


def test_a_folder_of_timm_gives_the_features_before_the_head(folder):
    path, model = folder
    described = open_features(path)
    config = timm.data.resolve_model_data_config(model)
    picture = noise(3, 40, 50).sigmoid()
    side = config["input_size"][-1]
    square = F.interpolate(picture[None], (side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        wanted = model.forward_head(model.forward_features((square - mean) / std), pre_logits=True)
    torch.testing.assert_close(described.measure(picture), wanted)
    assert described.distance == "Frechet distance (features: test_resnet)"
    assert described._replace(name="inception_v3").distance == "FID"


def test_nothing_but_safetensors_is_opened(folder, tmp_path):
    path, model = folder
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no model.safetensors; pass the folder of a timm model"):
        open_features(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be opened: "):
        open_features(tmp_path)
