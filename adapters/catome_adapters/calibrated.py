"""A recipe for every site of one model, as `catome calibrate` chooses them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import getpid
from pathlib import Path
from typing import Any

from catome_adapters.recipe import MergeRecipe
from catome_adapters.sites.site import MergeSite


@dataclass(frozen=True)
class CalibratedRecipe:
    """Recipes by site, for one model; its other sites are left whole.

    Attributes:
        model: Identity of the model, of `identify_sites`.
        recipes: By the name of the site.
        fit: How they were chosen, as JSON values.
    """

    model: str
    recipes: Mapping[str, MergeRecipe]
    fit: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Everything as a JSON object."""
        recipes = {name: json.loads(recipe.to_json()) for name, recipe in self.recipes.items()}
        return json.dumps({"model": self.model, "recipes": recipes, "fit": dict(self.fit)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> CalibratedRecipe:
        """What `to_json` wrote."""
        found = json.loads(text)
        recipes = {name: MergeRecipe.from_json(json.dumps(one)) for name, one in found["recipes"].items()}
        return cls(found["model"], recipes, found["fit"])

    def save(self, path: str | Path) -> None:
        """Write it to a file, as a whole or not at all."""
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.{getpid()}")
        try:
            unfinished.write_text(self.to_json() + "\n", encoding="utf-8")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> CalibratedRecipe:
        """What `save` wrote."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def identify_sites(sites: Sequence[MergeSite]) -> str:
    """The identity of a model: where its sites are, and what they are."""
    lines = [f"{site.name} {type(site.block).__name__} {site.level} {site.shape}" for site in sites]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
