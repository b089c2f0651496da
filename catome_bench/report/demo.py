"""What `catome demo` wrote, as a part of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from catome_bench.plots import plot_jaccard, plot_similarity
from catome_bench.report.html import element, facts, grid, plot, table
from catome_bench.report.part import Part, likeness
from catome_bench.report.pictures import before_after, merge_maps
from catome_bench.report.results import Results, find_picture
from catome_bench.views.speed import pace
from catome_bench.views.tables import render_demo

Curves = Mapping[str, Any]


def show_demo(results: Results) -> Part:
    """Pictures, merge maps, curves, tables, settings and machine."""
    found, measured = results.found, results.found["results"]
    body = [
        table(render_demo(measured)),
        *_pictures(results),
        element("h3", "Similarity of the tokens"),
        plot(f"Similarity by step for {_names(found['similarity'])}", _figure(plot_similarity, found["similarity"])),
        element("p", "Median and middle half of each layer. What is above the threshold of the recipe merges."),
        element("h3", "Change of the pairs"),
        plot(f"Jaccard distance by step for {_names(found['jaccard'])}", _figure(plot_jaccard, found["jaccard"])),
        facts("Settings", found["settings"]),
        facts("Machine", found["machine"]),
    ]
    share = f"with {measured['merged_fraction']:.0%} of the tokens or keys merged"
    about = f"the shipped {found['settings']['arch']} in {found['settings']['steps']} steps"
    conclusion = f"{about} draws {pace(measured['speedup'])}, {likeness(measured['psnr'])}, {share}."
    return Part(conclusion[0].upper() + conclusion[1:], "".join(body))


def _pictures(results: Results) -> list[str]:
    pairs, folder = results.found["pictures"], results.file.parent
    files = [(pair["name"], *(find_picture(folder, pair[side]) for side in ("baseline", "merged"))) for pair in pairs]
    figures = [before_after(name, baseline, {"merged": merged}) for name, baseline, merged in files]
    strips = {site: find_picture(folder, name) for site, name in results.found["merge_maps"].items()}
    _, first, _ = files[0]
    explained = "Tokens above the threshold at every step, if every step finds its pairs anew: merged tokens are dark."
    maps = [element("h3", "Merge maps"), element("p", explained), merge_maps(first, strips)]
    return [element("h3", "Pictures"), grid(figures), *maps]


def _names(curves: Curves) -> str:
    return f"{len(curves)} layers: {', '.join(curves)}"


def _figure(draw: Callable[[Curves, Axes], Axes], curves: Curves) -> Callable[[], Figure]:
    def make() -> Figure:
        figure, axes = plt.subplots(layout="constrained")
        draw(curves, axes)
        return figure

    return make
