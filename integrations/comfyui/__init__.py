"""CA-ToMe for ComfyUI, which loads this folder from its `custom_nodes`."""

import logging

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}

try:
    from .node import CaTome
except ImportError as error:
    logging.getLogger("catome").error(
        "The node CA-ToMe is not available: %s. Install catome into the Python that runs ComfyUI, with "
        "`python -m pip install PATH`, where PATH is a checkout of CA-ToMe, and restart ComfyUI.",
        error,
    )
else:
    NODE_CLASS_MAPPINGS["CaTome"] = CaTome
    NODE_DISPLAY_NAME_MAPPINGS["CaTome"] = "CA-ToMe"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
