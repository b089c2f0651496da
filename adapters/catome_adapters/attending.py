"""Around one self-attention: merge what enters it, tell it of slots, unmerge what leaves it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from catome_adapters.arguments import Arguments, Signature
from catome_adapters.calls import BlockCalls
from catome_adapters.recipe import MergeRecipe
from catome_core import MergePlan, attention_bias, gather_anchors, merge
from catome_core.intercepting import SlotAttention

# Compiled code is valid for this number of a hook that is called after errors, too: blocks can share their graphs only
# if all have the same. Taken from torch's counter, so no other hook has it.
AFTER = RemovableHandle(OrderedDict()).id


class Pass:
    """What the hooks of a segment share during one forward pass; no plan: the tokens are left alone.

    Attributes:
        plan: The plan of the merge.
        entry: The tokens before the first block's merge, and after it.
        awaits_output: Whether the next output is to be matched.
        attended: Whether self-attention was called; a cache over steps may answer for the whole block instead.
        keys: What the block's attention compared (batch, heads, tokens, channels), in progressive merging.
        further: There, what the block merges on top of `plan`.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drop everything, also what a pass that did not finish left behind."""
        self.plan: MergePlan | None = None
        self.entry: tuple[Tensor, Tensor] | None = None
        self.keys: Tensor | None = None
        self.further: MergePlan | None = None
        self.awaits_output = self.attended = False


class AttentionHooks:
    """Hooks on a self-attention of any kind, which is told of slots where it calls torch's fused attention."""

    def __init__(self, module: nn.Module, calls: BlockCalls, recipe: MergeRecipe, current: Pass) -> None:
        self.module, self.calls, self.recipe, self.current = module, calls, recipe, current
        # Looked up here: in compiled code, by the module, it would be another graph for every block.
        self.signature = Signature.of(module)
        self.telling: SlotAttention | None = None
        self.handle: Any = module.register_forward_pre_hook(self.before, with_kwargs=True)
        module._forward_hooks[AFTER] = self.after
        module._forward_hooks_always_called[AFTER] = True

    @staticmethod
    def on(module: nn.Module) -> bool:
        """Whether a session is at work on this self-attention."""
        owners = [getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values()]
        return any(isinstance(owner, AttentionHooks) for owner in owners)

    def begin_step(self) -> None:
        """Before a step, outside compiled code."""

    def remove(self) -> None:
        """Take every hook off again."""
        self.handle.remove()
        self.module._forward_hooks.pop(AFTER, None)
        self.module._forward_hooks_always_called.pop(AFTER, None)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Merge and tell."""
        plan, call = self.current.plan, (args, kwargs)
        self.current.attended = True
        if plan is None:
            return call
        if self.recipe.scope == "attention":
            call = self.calls.merge_attended(self.signature, call, plan)
        self.telling = SlotAttention(
            plan,
            proportional=self.recipe.proportional,
            padded=self.recipe.policy.spare == "pad",
            keys=self.recipe.scope == "keys",
            span=self.calls.key_span(module),
        )
        self.telling.__enter__()
        return call

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Stop telling, also after an error, and unmerge."""
        telling, self.telling = self.telling, None
        if telling is not None:
            telling.__exit__(None, None, None)
        if output is None:
            return None
        if telling is not None and telling.needed and not telling.seen:
            self._refuse_untold(telling)
        plan = self.current.plan
        return output if plan is None or self.recipe.scope != "attention" else self.calls.unmerge_attended(output, plan)

    def _refuse_untold(self, telling: SlotAttention) -> None:
        raise ValueError(
            f"{self.calls.site.name}: {type(self.module).__name__} did not call scaled_dot_product_attention with "
            f"{telling.length} keys, so it cannot be told what merged: switch to the default attention backend, fused "
            'attention and no slicing, or use scope="attention" with AdaptiveMerge(spare="fill") and proportional=False'
        )


class KeyedAttentionHooks(AttentionHooks):
    """Hooks on diffusers' `Attention`, which takes keys and their mask as arguments: projections are saved as well.

    With scope="keys", keys are those of the anchors, since a mean of keys is shorter than each of them.
    """

    def __init__(self, module: nn.Module, calls: BlockCalls, recipe: MergeRecipe, current: Pass) -> None:
        super().__init__(module, calls, recipe, current)
        self.anchored: Tensor | None = None
        self.projection: nn.Module | None = None
        self.projection_handle: Any = None
        self.begin_step()

    def begin_step(self) -> None:
        """Adapters such as LoRA put another module in the projection's place, so it is looked up before every step."""
        projection = getattr(self.module, "to_k", None)
        if self.recipe.scope != "keys" or projection is None or projection is self.projection:
            return
        if self.projection_handle is not None:
            self.projection_handle.remove()
        self.projection = projection
        self.projection_handle = projection.register_forward_pre_hook(self._before_keys)

    def remove(self) -> None:
        """Take every hook off again."""
        super().remove()
        if self.projection_handle is not None:
            self.projection_handle.remove()
        self.anchored = None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Merge and tell, by arguments."""
        plan = self.current.plan
        self.current.attended = True
        if plan is None:
            return args, kwargs
        tokens = args[0]
        kwargs = kwargs | {"attention_mask": self._bias(tokens, plan, kwargs.get("attention_mask"))}
        if self.recipe.scope == "keys":
            self._refuse_fused(module)
            self.anchored = gather_anchors(tokens, plan)
            return args, kwargs | {"encoder_hidden_states": merge(tokens, plan)}
        if self.recipe.scope == "attention":
            args = (merge(tokens, plan), *args[1:])
        return args, kwargs

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Unmerge."""
        self.anchored = None
        return super().after(module, args, output)

    def _before_keys(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args if self.anchored is None else (self.anchored, *args[1:])

    def _refuse_fused(self, attention: nn.Module) -> None:
        # Not `fused_projections`: diffusers leaves it True when it unfuses.
        if type(getattr(attention, "processor", None)).__name__.startswith("Fused"):
            raise ValueError(
                f"{self.calls.site.name} has fused projections, which take queries and keys from the same tokens; "
                "call unfuse_qkv_projections(), or use scope='attention'"
            )

    def _bias(self, tokens: Tensor, plan: MergePlan, mask: Tensor | None) -> Tensor | None:
        if mask is not None:
            raise ValueError(
                f"{self.calls.site.name} was given an attention_mask of shape {tuple(mask.shape)} for its "
                "self-attention, which does not fit merged keys; detach the session for masked inputs, or leave the "
                "mask out"
            )
        if self.recipe.policy.spare == "fill" and not self.recipe.proportional:
            return None
        bias = attention_bias(plan, dtype=tokens.dtype, proportional=self.recipe.proportional)
        return bias[:, 0].expand(len(tokens), -1, -1)
