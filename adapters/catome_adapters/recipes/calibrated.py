"""A recipe for each site of one model, as calibration finds them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.recipes.saved import load_text, save_text
from catome_adapters.sites.site import MergeSite
from catome_adapters.sites.weights import count_weights
from catome_core import checks


@dataclass(frozen=True)
class CalibratedRecipe:
    """A recipe for each site of one model, and how they were chosen; `catome calibrate` makes it, `attach` takes it.

    Args:
        model: What the recipes are for, by `identify_sites`: blocks of the same kind, size and place, with any weights.
        recipes: By the name of the site. A site without one is left whole.
        fit: How they were chosen, as values of JSON; it changes nothing.

    Raises:
        TypeError: If a value has another type.
        ValueError: If there is no recipe.

    Examples:
        >>> from diffusers import DiTTransformer2DModel
        >>> from catome_adapters import RECIPES, attach, find_sites
        >>> network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=3, sample_size=16)
        >>> sites = find_sites(network)
        >>> recipe = CalibratedRecipe(identify_sites(sites), {sites[1].name: RECIPES["vit"]})
        >>> with attach(network, recipe) as session:
        ...     print([site.name for site in session.sites])
        ['transformer_blocks.1']
    """

    model: str
    recipes: Mapping[str, MergeRecipe]
    fit: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        checks.instance("model", self.model, str, "a text that identify_sites returned")
        checks.instance("recipes", self.recipes, Mapping, "recipes by the name of the site")
        checks.instance("fit", self.fit, Mapping, "values of JSON by name")
        if not self.recipes:
            raise ValueError("recipes is empty; expected a recipe for one site at least")
        for name, recipe in self.recipes.items():
            checks.instance(f"recipes[{name!r}]", recipe, MergeRecipe, "a MergeRecipe")

    def __hash__(self) -> int:
        return hash((self.model, frozenset(self.recipes.items())))

    def grouped(self) -> dict[MergeRecipe, list[str]]:
        """The names of the sites, by the recipe that they share."""
        groups: dict[MergeRecipe, list[str]] = {}
        for name, recipe in self.recipes.items():
            groups.setdefault(recipe, []).append(name)
        return groups

    def check_model(self, sites: Sequence[MergeSite]) -> None:
        """Check that these are the sites of the model that the recipes were found on.

        Raises:
            ValueError: If they are not.
        """
        known, found = {site.name for site in sites}, identify_sites(sites)
        missing = [name for name in self.recipes if name not in known]
        if missing or found != self.model:
            absent = f", and there is no {missing[0]}" if missing else ""
            raise ValueError(
                f"the recipe was calibrated on {self.model}; this model has {found}{absent}: calibrate on this one"
            )

    def to_json(self) -> str:
        """The recipe as a JSON object."""
        groups = self.grouped().items()
        recipes = [{"sites": sites, "recipe": json.loads(recipe.to_json())} for recipe, sites in groups]
        return json.dumps({"model": self.model, "recipes": recipes, "fit": dict(self.fit)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> CalibratedRecipe:
        """The recipe that `to_json` wrote; errors name the path of the field, such as `recipes[0].recipe.scope`.

        Raises:
            ValueError: If the text is not JSON, a field is missing, a value is out of range, or a site has two recipes.
            TypeError: If a field is unknown, or a value has another type.
        """
        values = checks.fields_of(cls, json.loads(text), "", required=("model", "recipes"))
        groups = checks.instance("recipes", values["recipes"], list, "a list of sites and their recipe")
        recipes: dict[str, MergeRecipe] = {}
        for number, group in enumerate(groups):
            for name, recipe in _recipes_of(group, f"recipes[{number}]"):
                if name in recipes:
                    raise ValueError(
                        f"recipes[{number}].sites names {name} again; expected it once: remove one of them"
                    )
                recipes[name] = recipe
        return cls(values["model"], recipes, values.get("fit", {}))

    def save(self, path: str | Path) -> None:
        """Write the recipe to a file as JSON; a file that is there is replaced, as a whole or not at all.

        Raises:
            OSError: If the file cannot be written.
        """
        save_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> CalibratedRecipe:
        """The recipe in a file that `save` wrote; errors of `from_json` begin with the name of the file.

        Raises:
            OSError: If the file cannot be read.
        """
        return load_text(path, cls.from_json)


Recipe = MergeRecipe | CalibratedRecipe
"""What `attach` takes, beside a name."""


def identify_sites(sites: Sequence[MergeSite]) -> str:
    """What a model is to a recipe: its transformer blocks, by kind, size and place; neither weights nor their dtype.

    Args:
        sites: All sites of the model, from `find_sites`.

    Examples:
        >>> from diffusers import DiTTransformer2DModel
        >>> from catome_adapters import find_sites
        >>> network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=3, sample_size=16)
        >>> identify_sites(find_sites(network)).rpartition(", ")[0]
        '3 BasicTransformerBlock'
    """
    kinds = Counter(type(site.block).__name__ for site in sites)
    blocks = "\n".join(_describe(site) for site in sites)
    counts = " and ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{counts}, {sha256(blocks.encode()).hexdigest()[:12]}"


def _describe(site: MergeSite) -> str:
    weights = count_weights(site)
    kind, sizes = type(site.block).__name__, (site.level, site.prefix, weights.channels, weights.width)
    return " ".join(map(str, (site.name, kind, *sizes)))


def _recipes_of(group: Any, path: str) -> Iterable[tuple[str, MergeRecipe]]:
    """The recipe of a JSON object, for each of its sites."""
    values = checks.instance(path, group, dict, "a JSON object with the fields ['sites', 'recipe']")
    for name, kind in {"sites": list, "recipe": dict}.items():
        checks.instance(f"{path}.{name}", values.get(name), kind, f"a {kind.__name__}, as to_json writes it")
    try:
        recipe = MergeRecipe.from_json(json.dumps(values["recipe"]))
    except (TypeError, ValueError) as error:
        raise checks.located(f"{path}.recipe.", error) from error
    return [(checks.instance(f"{path}.sites", name, str, "names of sites"), recipe) for name in values["sites"]]
