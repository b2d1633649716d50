"""What the tests of `encode` have in common: images in folders and tars, a tiny model, and what it gives."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms as T

from anchorprune import Compute, EncodeRequest, LoadedModel, ModelSpec
from support.material import picture
from support.models import make_clip

pq = pytest.importorskip("pyarrow.parquet")

TRANSFORM = T.Compose([T.Resize(32), T.CenterCrop(32), T.ToTensor()])
CPU = Compute(device="cpu", precision="fp32", batch_size=4, num_workers=0)


def tiny_model() -> LoadedModel:
    return LoadedModel(make_clip(), TRANSFORM, open_clip.get_tokenizer("ViT-B-32"))


def make_photos(folder: Path) -> Path:
    """Ten images in nested folders, some with captions beside them."""
    for i in range(10):
        path = folder / f"group {i % 3}" / "deep" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, 40).save(path)
        if i != 4:
            path.with_suffix(".txt").write_text(f"number {i}\n", encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps({"source": f"s{i}", "score": i / 2}), encoding="utf-8")
    return folder


def request(source: Any, **fields: Any) -> EncodeRequest:
    paths = source if isinstance(source, tuple) else str(source)
    return EncodeRequest(**({"input": paths, "model": ModelSpec(name="tiny"), "compute": CPU} | fields))


def table(out: Path) -> Any:
    return pq.read_table(out / "embeddings")


def expected(model: LoadedModel, paths: list[Path]) -> torch.Tensor:
    """`[images, D]` from the model itself, one image after the other."""
    images = torch.stack([TRANSFORM(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        return torch.cat([F.normalize(model.model.encode_image(image[None]), dim=-1) for image in images])


def embeddings(out: Path, column: str = "embedding") -> torch.Tensor:
    return torch.tensor(np.stack(table(out)[column].to_numpy()).astype(np.float32))


def make_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed, 40).save(file, "PNG")
    return file.getvalue()


def make_tars(folder: Path, tars: int = 3, per_tar: int = 4) -> Path:
    folder.mkdir()
    for t in range(tars):
        samples = {
            f"{n:04d}": {
                "png": png(10 * t + n),
                "txt": f"picture {t} {n}".encode(),
                "json": json.dumps({"url": f"u{n}"}).encode(),
            }
            for n in range(per_tar)
        }
        make_tar(folder / f"{t:05d}.tar", samples)
    return folder
