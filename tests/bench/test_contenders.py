"""The contenders of a race over a block: all of them run, with the tokens that they claim."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from catome_bench.measure.race import race
from catome_bench.races import blocks
from catome_bench.races.contenders import half_threshold, rung_contenders
from catome_bench.races.hosts import twin
from catome_core import TokenGrid, match_tokens
from zoo.tiny_blocks import OURS, TINY, UNET, by_subject, contenders_of, some

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("fresh_compiler", "without_gradients")]


class TestContenders:
    def test_a_twin_has_hooks_of_its_own_and_the_same_weights(self):
        host = UNET.host("cpu", torch.float32)
        other = twin(host)
        other.register_forward_hook(lambda *_: None)
        assert not host._forward_hooks
        assert all(a is b for a, b in zip(host.parameters(), other.parameters(), strict=True))
        assert all(a is b for a, b in zip(host.buffers(), other.buffers(), strict=True))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("name", TINY)
    def test_every_contender_runs_and_half_of_the_tokens_go(self, name, dtype):
        rows = by_subject(race(contenders_of(name, dtype=dtype), "eager", repeats=1, device="cpu"))
        missing = {subject for (subject, _), row in rows.items() if row.timing is None}
        assert missing == ({"tomesd", "ca-tome"} if name == "pixart" else set())
        assert ("block", "reuse") in rows
        assert ("unpatched", "every step") in rows
        if TINY[name].rows is None:
            assert {subject for subject, phase in rows if phase == "config_3"} == OURS | (
                {"ca-tome"} if name != "pixart" else set()
            )

    @pytest.mark.parametrize(("scope", "queries", "keys"), [("attention", 8, 8), ("keys", 16, 8), ("block", 8, 8)])
    @pytest.mark.parametrize("who", ["free {}", "{}", "{}, proportional"])
    def test_free_and_ours_attend_to_as_many_tokens(self, monkeypatch, who, scope, queries, keys):
        seen = []
        attend = nn.functional.scaled_dot_product_attention

        def spy(query, key, value, *args, **kwargs):
            seen.append((query.shape[2], key.shape[2]))
            return attend(query, key, value, *args, **kwargs)

        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
        race(some(contenders_of("unet"), who.format(scope)), "eager", repeats=1, device="cpu")
        assert {pair for pair in seen if pair[1] != 3} == {(queries, keys)}  # the others look at the text

    def test_phases_recompute_or_reuse_in_any_order(self):
        with ExitStack() as stack:
            module, (image,), phases, _ = contenders_of("unet")["attention"](stack)
            results = []
            for phase in ("checkpoint", "reuse", "reuse", "checkpoint", "checkpoint", "reuse"):
                phases[phase]()
                image.copy_(torch.randn(image.shape, generator=torch.Generator().manual_seed(len(results) % 2)))
                results.append(module(image).clone())
            # The pairs of image 0 serve image 1, which would choose others.
            assert torch.equal(results[0], results[2])
            assert not torch.equal(results[1], results[3])
            assert torch.equal(results[1], results[5])

    def test_rungs_go_from_a_quarter_of_the_tokens_to_all(self):
        rows = race(rung_contenders(UNET, (0, 0.25, 0.75), "cpu", torch.float32), "eager", repeats=1, device="cpu")
        assert {row.subject for row in rows if row.phase == "reuse"} == {"capacity 0", "capacity 0.25", "capacity 0.75"}
        assert all(row.timing for row in rows)

    def test_ca_tome_gets_the_threshold_that_merges_half(self):
        tokens = torch.randn(2, 64 * 16, 16)
        image = tokens.unflatten(1, (32, 32)).permute(0, 3, 1, 2)
        threshold = half_threshold(image)
        scores = match_tokens(tokens, TokenGrid((32, 32))).score
        assert (scores > threshold).sum() / tokens[..., 0].numel() == pytest.approx(0.5, abs=0.01)


def test_real_cases_have_the_real_sizes():
    """Without building them: what the tables are called must be what is measured."""
    tokens = {name: torch.Size(case.grid).numel() for name, case in blocks.CASES.items()}
    assert tokens["sd15-512"] == 512 * 512 // 8**2
    assert tokens["sd15-1024"] == 1024 * 1024 // 8**2
    assert tokens["sdxl-1024-top"] == 1024 * 1024 // 16**2
    assert tokens["flux-1024-single"] == 1024 * 1024 // 16**2
    assert tokens["wan-480p"] == 21 * (480 // 16) * (832 // 16)
