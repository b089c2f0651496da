"""The peers at work on a network: they merge, they follow their own rules, and they leave nothing behind."""

from collections.abc import Callable
from contextlib import contextmanager
from itertools import groupby

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from einops import rearrange
from torch import Tensor, nn

from catome_bench.races import peers
from catome_bench.races.peers import PEERS, ca_tome, todo, tomesd
from probes import anatomy
from zoo.noise import noise
from zoo.unet_pipelines import class_pipeline, draw
from zoo.unets import predict, sd_unet

SIDE = 16
PACKAGES = {"tomesd": "tomesd", "ca-tome": "ca_tome"}


class Host(nn.Module):
    """The least that a peer must take: an image in, one transformer block over its tokens, an image out."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(8, 2, 4, **options)])

    def forward(self, image: Tensor) -> Tensor:
        tokens = rearrange(image, "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return rearrange(tokens, "b (h w) c -> b c h w", h=image.shape[-2])


@pytest.fixture
def host() -> Host:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Host().eval()


@pytest.fixture
def image() -> Tensor:
    """Smooth, as latents are: neighbors are similar, and some pairs are above every threshold and some below."""
    return nn.functional.interpolate(noise(2, 8, 5, 5), (SIDE, SIDE), mode="bilinear")


@contextmanager
def keys_of(network: nn.Module, path: str):
    """How many tokens the keys of a self-attention were computed from, call by call."""
    counts: list[int] = []
    projection = network.get_submodule(path).to_k
    handle = projection.register_forward_pre_hook(lambda module, args: counts.append(args[0].shape[1]))
    try:
        yield counts
    finally:
        handle.remove()


def installed(name: str) -> Callable:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    return PEERS[name]


ATTENTION = "transformer_blocks.0.attn1"


@torch.no_grad()
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_shortens_the_attention_of_any_host_and_leaves_it_as_it_was(name: str, host: Host, image: Tensor):
    peer, before, whole = installed(name), anatomy(host), host(image)
    with keys_of(host, ATTENTION) as keys:
        with peer(host):
            merged = host(image)
        restored = host(image)
    assert keys[0] < keys[1] == SIDE * SIDE
    assert merged.isfinite().all() and not torch.equal(merged, whole)
    assert torch.equal(restored, whole)
    assert anatomy(host) == before


@torch.no_grad()
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_touches_only_the_blocks_that_see_the_whole_image(name: str):
    peer, network, sample = installed(name), sd_unet(), noise(2, 4, SIDE, SIDE)
    before = anatomy(network)
    top, below = "down_blocks.0.attentions.0." + ATTENTION, "down_blocks.1.attentions.0." + ATTENTION
    with keys_of(network, top) as fine, keys_of(network, below) as coarse, peer(network):
        predict(network, sample)
    assert fine[0] < SIDE * SIDE
    assert coarse[0] == SIDE * SIDE // 4
    assert anatomy(network) == before


@torch.no_grad()
def test_tomesd_removes_the_share_it_is_told_to(host: Host, image: Tensor):
    installed("tomesd")
    with keys_of(host, ATTENTION) as keys:
        for ratio in (0.25, 0.5):
            with tomesd(host, ratio):
                host(image)
    assert keys == [SIDE * SIDE * 3 // 4, SIDE * SIDE // 2]


@torch.no_grad()
def test_todo_attends_to_every_second_row_and_column(host: Host, image: Tensor):
    attention = host.transformer_blocks[0].attn1
    seen: list[Tensor] = []
    handle = attention.register_forward_hook(lambda module, args, output: seen.extend([*args, output]))
    with todo(host):
        host(image)
    handle.remove()
    queries, output = seen
    corners = [row * SIDE + column for row in range(0, SIDE, 2) for column in range(0, SIDE, 2)]
    assert queries.shape[1] == SIDE * SIDE
    torch.testing.assert_close(output, attention(queries, encoder_hidden_states=queries[:, corners]))


@torch.no_grad()
def test_ca_tome_merges_what_is_above_its_threshold(host: Host, image: Tensor):
    installed("ca-tome")
    with keys_of(host, ATTENTION) as keys:
        for threshold in (0.5, 0.9, 1.0):
            with ca_tome(host, threshold):
                host(image)
    assert keys[0] < keys[1] < keys[2] == SIDE * SIDE


@torch.no_grad()
def test_ca_tome_keeps_its_pairs_between_its_checkpoints(host: Host, image: Tensor):
    """It counts from 1, so entry 8 of its list is step 7 here; another image shows whether it matched anew."""
    installed("ca-tome")
    other = noise(2, 8, SIDE, SIDE, seed=1)
    with keys_of(host, ATTENTION) as keys, ca_tome(host, 0.9) as steps:
        host(image)
        for step in (1, 6, 7, 8):
            steps.begin_step(step, 50)
            host(other)
    first, *reused, checkpoint, after = keys
    assert reused == [first, first]
    assert checkpoint == after > first


def test_ca_tome_hears_the_steps_of_a_scheduler(monkeypatch: pytest.MonkeyPatch):
    installed("ca-tome")
    reported: list[int] = []
    begin_step = peers.PeerSteps.begin_step
    monkeypatch.setattr(
        peers.PeerSteps, "begin_step", lambda self, step, total: [reported.append(step), begin_step(self, step, total)]
    )
    pipe = class_pipeline()
    before, scheduler = anatomy(pipe.unet), dict(vars(pipe.scheduler))
    with ca_tome(pipe):
        draw(pipe, steps=3)
    # The scheduler says more than once which step comes.
    assert [step for step, _ in groupby(reported)] == [0, 1, 2, 3]
    assert anatomy(pipe.unet) == before
    assert vars(pipe.scheduler).keys() - scheduler.keys() <= {"timesteps", "num_inference_steps"}


@pytest.mark.parametrize("name", PEERS)
def test_an_error_inside_takes_the_peer_off(name: str, host: Host):
    peer, before = installed(name), anatomy(host)
    with pytest.raises(KeyError), peer(host):
        raise KeyError
    assert anatomy(host) == before


@pytest.mark.parametrize("name", PACKAGES)
def test_a_peer_that_is_not_installed_says_how_to_install_it(name: str, host: Host, monkeypatch: pytest.MonkeyPatch):
    def absent(package: str) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(peers, "import_module", absent)
    before = anatomy(host)
    with pytest.raises(ModuleNotFoundError, match=r"not installed: pip install .*==0\.1\.3"), PEERS[name](host):
        pass
    assert anatomy(host) == before


@pytest.mark.parametrize("name", PACKAGES)
def test_a_norm_that_a_peer_would_leave_out_is_refused(name: str):
    host = Host(norm_type="ada_norm_single", num_embeds_ada_norm=10)
    peer, before = installed(name), anatomy(host)
    with pytest.raises(ValueError, match=r"ada_norm_single.*layer_norm"), peer(host):
        pass
    assert anatomy(host) == before


@pytest.mark.parametrize("name", PEERS)
def test_a_network_without_such_blocks_is_refused(name: str):
    with pytest.raises(ValueError, match=r"Linear has no BasicTransformerBlock"), installed(name)(nn.Linear(2, 2)):
        pass
