"""The Frechet distance: its closed form, another implementation, and pictures that are damaged more and more."""

import math
from functools import reduce
from itertools import pairwise
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from catome_bench.measure import frechet
from catome_bench.measure.frechet import GrowingMoments, Moments, frechet_distance, picture_features
from catome_bench.models import load_shipped
from zoo.noise import noise


@pytest.fixture(scope="module")
def pipeline():
    return load_shipped()


def gaussian(samples: int, mean: Tensor, root: Tensor) -> Tensor:
    """Samples whose mean and covariance `root root^T` are exactly these."""
    raw = noise(samples, len(mean)).double()
    white = torch.linalg.qr(raw - raw.mean(0)).Q * (samples - 1) ** 0.5
    return white @ root.mT + mean


def matrix_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.mT


def test_the_distance_of_gaussians_is_the_closed_form():
    mean_1, mean_2 = noise(2, 5).double()
    root_1, root_2 = noise(2, 5, 5, seed=1).double()
    cov_1, cov_2 = root_1 @ root_1.mT, root_2 @ root_2.mT
    half = matrix_root(cov_1)
    wanted = (mean_1 - mean_2).square().sum() + (cov_1 + cov_2 - 2 * matrix_root(half @ cov_2 @ half)).trace()
    first, second = gaussian(40, mean_1, root_1), gaussian(60, mean_2, root_2)
    assert frechet_distance(first, second) == pytest.approx(wanted.item(), rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(wanted.item(), rel=1e-9)


def test_the_distance_of_gaussians_along_a_line():
    """|m1 - m2|^2 + (s1 - s2)^2."""
    first, second = (gaussian(9, torch.tensor([m]).double(), torch.tensor([[s]]).double()) for m, s in ((1, 2), (4, 7)))
    assert frechet_distance(first, second) == pytest.approx(9 + 25)


@pytest.mark.parametrize("samples", [3, 50], ids="{} samples of 8 channels".format)
def test_equal_sets_have_no_distance(samples: int):
    features = noise(samples, 8)
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-12)


def test_the_distance_agrees_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(feature=Passing(6))
    first, second = noise(30, 6), 0.5 * noise(40, 6, seed=1) + 1
    fid.update(first, real=True)
    fid.update(second, real=False)
    assert frechet_distance(first, second) == pytest.approx(fid.compute().item(), rel=1e-5)


class Passing(torch.nn.Identity):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((1, 3), (4, 3)), ((4,), (4,))])
def test_sets_that_have_no_distance_are_refused(shapes):
    with pytest.raises(ValueError, match=r"expected \(n, channels\)"):
        frechet_distance(*(torch.zeros(shape) for shape in shapes))


def test_the_more_a_picture_is_damaged_the_farther_it_is(pipeline):
    pictures = pipeline(["cat", "rocket"], size=32, num_inference_steps=3, generator=torch.Generator().manual_seed(0))
    features = picture_features(pipeline, pictures)
    damage = noise(*pictures.shape)
    distances = [
        frechet_distance(features, picture_features(pipeline, (pictures + strength * damage).clamp(0, 1)))
        for strength in (0, 0.02, 0.08, 0.3)
    ]
    assert distances[0] == pytest.approx(0, abs=1e-9 * features.square().sum(1).mean().item())
    assert all(near < far for near, far in pairwise(distances)), distances
    assert features.shape == (2 * 4 * 4, 192) and math.isfinite(distances[-1])


def test_sets_that_are_measured_in_parts_and_joined_are_measured_as_a_whole():
    first, second = noise(30, 6).double(), 0.5 * noise(41, 6, seed=1).double() + 1
    parts = [Moments.of(part) for part in first.split([1, 2, 20, 7])]
    joined = reduce(Moments.joined, parts)
    assert joined.size == 30
    torch.testing.assert_close(joined.mean, first.mean(0))
    torch.testing.assert_close(joined.root.mT @ joined.root / 29, first.mT.cov())
    assert joined.distance(Moments.of(second)) == pytest.approx(frechet_distance(first, second), rel=1e-9)


def test_samples_that_come_one_by_one_are_factorized_together(monkeypatch):
    monkeypatch.setattr(frechet, "FEWEST_TOGETHER", 4)
    monkeypatch.setattr(torch.linalg, "qr", counting := Mock(wraps=torch.linalg.qr))
    samples, growing = noise(30, 6), GrowingMoments()
    for one in samples:
        growing.add(one[None])
    grown = growing.moments()
    # Five times six, each joined to those before.
    assert counting.call_count == 9
    assert grown.size == 30
    torch.testing.assert_close(grown.mean, samples.double().mean(0))
    torch.testing.assert_close(grown.root.mT @ grown.root / 29, samples.double().mT.cov())
