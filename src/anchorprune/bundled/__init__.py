"""The bundled model and photographs: `--model anchorprune-demo --pretrained bundled --dataset bundled`.

A small CLIP that tells the classes of the bundled photographs apart and nothing else: it shows what pruning does
without a download. Real work uses open_clip's weights. Importing this module imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anchorprune.errors import FieldError

MODEL = "anchorprune-demo"
TAG = "bundled"  # what --pretrained and --dataset call what is in this package

_HERE = Path(__file__).parent
CONFIG = _HERE / f"{MODEL}.json"
WEIGHTS = _HERE / "model.safetensors"
PHOTOS = _HERE / "photos"  # in the webdataset layout


def register() -> None:
    """Make open_clip know the model's architecture, for `open_clip.create_model("anchorprune-demo")`."""
    import open_clip

    if MODEL not in open_clip.list_models():
        open_clip.add_model_config(CONFIG)


def check_weights(model: str) -> None:
    """Raise UserError unless `--pretrained bundled` can be had for `model`."""
    if model != MODEL:
        said = f"these are weights of {{}}{MODEL}, not of {model}; name that model"
        raise FieldError("pretrained", TAG, said.format("the model "), typed=said.format("--model "))
    if not WEIGHTS.is_file():
        raise FieldError("pretrained", TAG, f"the file {WEIGHTS} is missing from this installation; install it again")


def load_weights(model: Any) -> None:
    """Load the bundled weights into `model`, an `open_clip.create_model("anchorprune-demo")`.

    Not by open_clip, whose 2.24 cannot read safetensors.

    Raises:
        UserError: the file is damaged, or of another architecture.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(WEIGHTS))
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FieldError("pretrained", TAG, f"{WEIGHTS} is damaged ({reason}); install anchorprune again") from error
