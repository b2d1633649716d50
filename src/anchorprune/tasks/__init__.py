"""The tasks, one file each: `run(features, …) -> {metric: value}`."""

from __future__ import annotations

from anchorprune.errors import UserError

# Upstream's tasks; a task is there once its file is.
TASKS = ("zeroshot_classification", "zeroshot_retrieval", "linear_probe", "captioning", "image_caption_selection")
AVAILABLE = ("zeroshot_classification",)


def check(task: str, dataset: str) -> None:
    """Raise UserError for a task that is not there yet."""
    if task not in AVAILABLE:
        raise UserError(f"--task {task} (dataset {dataset}): not there yet; only {', '.join(AVAILABLE)} is")
