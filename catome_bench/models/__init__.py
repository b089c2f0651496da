"""The shipped models, the pipelines that draw with them, and the photographs they were trained on."""

from catome_bench.models.pipeline import ClassPipeline, load_shipped

__all__ = ["ClassPipeline", "load_shipped"]
