"""What to say when a self-attention fails on merged tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from torch import Tensor, nn

from catome_adapters.sites.call import Arguments, Signature
from catome_adapters.sites.plans import BlockPlans
from catome_adapters.sites.site import MergeSite

ABOUT_SIZES = {"size", "sizes", "shape", "shapes"}
"""Words by which torch's errors about sizes are known."""


def explain_failure(
    error: RuntimeError, site: MergeSite, signature: Signature, call: Arguments, plans: BlockPlans | None
) -> None:
    """After an error of a self-attention that was called so, with tokens merged by `plans`.

    Raises:
        ValueError: If torch complains of sizes, and an argument that the layout does not name still has a row for every
            token before the merge.
    """
    words = {*str(error).lower().split()}
    if plans is None or type(error) is not RuntimeError or not words & ABOUT_SIZES:
        return
    tokens, keys = (plan.slot.shape[1] for plan in plans)
    if plans.tokens.size.shape[1] == tokens:
        return
    fitting = {*(site.layout.attention_arguments or signature.names[:1])}
    fitting |= {rows.argument for rows in site.layout.per_token}
    for name, rows in _tensors(signature, call):
        if name not in fitting and {tokens, keys, tokens - site.prefix} & {*rows.shape}:
            raise ValueError(
                f"{site.name}: its self-attention failed on merged tokens, while its argument {name} of shape "
                f"{tuple(rows.shape)} has a row for every token before the merge: declare it with "
                f'per_token=(PerToken("{name}"),) in the layout of the site, or use scope="keys", which needs no rows'
            ) from error


def _tensors(signature: Signature, call: Arguments) -> Iterator[tuple[str, Tensor]]:
    args, kwargs = call
    given: dict[str, Any] = dict(zip(signature.names, args, strict=False)) | kwargs
    for name, value in given.items():
        parts = value if isinstance(value, tuple | list) else (value,)
        yield from ((name, part) for part in parts if isinstance(part, Tensor))


def refuse_uncalled(site: MergeSite, attention: nn.Module, keys: int) -> NoReturn:
    """Raise ValueError: the call that was to be intercepted, with this many keys, never came."""
    raise ValueError(
        f"{site.name}: {type(attention).__name__} did not call scaled_dot_product_attention with {keys} keys, so it "
        "cannot be made aware of what merged: switch to the default attention backend, fused attention and no slicing, "
        'or use scope="attention" with AdaptiveMerge(spare="fill") and proportional=False'
    )
