"""Training a pruned model: gradients reach what the forward pass read, on one process and on several."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from support.libraries import LIBRARIES, encode
from support.models import make_visual
from support.strategies import SMALL, every_strategy
from torch import Tensor, nn

import anchorprune
from anchorprune.strategies import standalone

POSITIONS = {
    "open_clip": lambda model: (model, "positional_embedding"),
    "timm ViT": lambda model: (model, "pos_embed"),
    "timm Eva, rotary": lambda model: (model, "pos_embed"),
    "transformers CLIP": lambda model: (model.vision_model.embeddings.position_embedding, "weight"),
    "transformers SigLIP": lambda model: (model.vision_model.embeddings.position_embedding, "weight"),
}


@pytest.mark.parametrize("library", POSITIONS)
def test_gradients_reach_the_positions_of_a_coarser_grid(library: str, images: Tensor) -> None:
    """As finite differences have them."""
    model: Any = (make_visual() if library == "open_clip" else LIBRARIES[library]()).double()
    part, name = POSITIONS[library](model)
    weight, images = getattr(part, name), images[:1].double()
    assert weight.requires_grad
    with anchorprune.prune(model, "coarse", keep_patches=6):

        def loss() -> Tensor:
            return encode(model, images).square().sum()

        (gradient,) = torch.autograd.grad(loss(), weight)
        assert (gradient != 0).sum() > gradient.numel() / 2
        flat, own = weight.detach().view(-1), gradient.reshape(-1)
        for place in (3, 200, 400):
            original, values = float(flat[place]), []
            for step in (1e-5, -1e-5):
                flat[place] = original + step
                with torch.no_grad():
                    values.append(float(loss()))
                flat[place] = original
            assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(own[place]), rel=1e-3, abs=1e-3)


WORKER = """
import os, sys
sys.path[:0] = [sys.argv[1]]
import warnings
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
torch.set_num_threads(1)
import anchorprune
from support.models import make_visual
from support.libraries import LIBRARIES
from support.strategies import KINDS, SMALL

def make(library):
    torch.manual_seed(0)
    return make_visual() if library == "open_clip" else LIBRARIES[library]()

def steps(model, images, strategy, count=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003)
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        for step in range(count):
            optimizer.zero_grad()
            model(images[step]).square().mean().backward()
            optimizer.step()
    assert pruning.effective

rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
images = torch.randn(3, 8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
for library in ("open_clip", "timm ViT, mean pooling"):
    for strategy in KINDS:
        parallel, alone = DistributedDataParallel(make(library).train()), make(library).train()
        steps(parallel, images[:, rank::2], strategy)
        steps(alone, images, strategy)
        for (name, ours), own in zip(parallel.module.named_parameters(), alone.parameters()):
            torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5, msg=f"{library} {strategy} {name}")
        moved = [not torch.equal(a, b) for a, b in zip(alone.parameters(), make(library).parameters())]
        assert all(moved), (library, strategy)
print("trained", flush=True)
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # torch may abort while it takes its own threads down ("terminate called without an active exception")
"""


def test_two_processes_train_every_kind_of_strategy_as_one_does(tmp_path: Path) -> None:
    """DistributedDataParallel; two halves of each batch on two processes, and all of it on one."""
    run_on_two(WORKER, tmp_path)


def run_on_two(code: str, folder: Path) -> None:
    (folder / "worker.py").write_text(code, encoding="utf-8")
    package = Path(anchorprune.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.run(
        [*command, str(folder / "worker.py"), str(Path(__file__).parent)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.count("trained") == 2


SHARDED = (
    WORKER.replace(
        "from torch.nn.parallel import DistributedDataParallel",
        """from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from anchorprune import UserError
from anchorprune.towers import find_tower""",
    ).split("images = torch.randn")[0]
    + """
mesh = init_device_mesh("cpu", (2,))
images = torch.randn(3, 8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
for library in ("open_clip", "timm ViT, mean pooling"):
    for strategy in KINDS:
        sharded, alone = make(library).train(), make(library).train()
        for block in find_tower(sharded).blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        if (library, strategy) == ("open_clip", "coarse"):
            try:
                anchorprune.prune(sharded, strategy, **SMALL[strategy])
            except UserError as error:
                assert "fully_shard has the positional_embedding" in str(error)
                continue
            raise AssertionError("not refused")
        steps(sharded, images[:, rank::2], strategy)
        steps(alone, images, strategy)
        for ours, own in zip(sharded.parameters(), alone.parameters()):
            torch.testing.assert_close(ours.full_tensor(), own, rtol=1e-4, atol=1e-5, msg=f"{library} {strategy}")
print("trained", flush=True)
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # torch may abort while it takes its own threads down ("terminate called without an active exception")
"""
)


def test_fully_sharded_it_trains_as_one_process_does_or_is_refused(tmp_path: Path) -> None:
    run_on_two(SHARDED, tmp_path)


@every_strategy
def test_the_last_pass_is_on_the_handle_after_checkpointed_training_too(strategy: str, images: Tensor) -> None:
    """`backward()` runs blocks again, the last one first."""
    kept, gradients = [], []
    for checkpointing in (False, True):
        model = make_visual().train()
        model.set_grad_checkpointing(checkpointing)
        with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
            model(images).square().sum().backward()
            assert pruning.tokens_after is not None
            kept.append((pruning.kept, pruning.tokens_by_block))
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert torch.equal(kept[0][0], kept[1][0])
    assert kept[0][1] == kept[1][1]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_backward_in_another_thread_belongs_to_the_pass_that_it_is_of(images: Tensor) -> None:
    """As on a GPU, where it runs in a thread that ran no forward pass."""
    for strategy in sorted(standalone()):
        expected, found = [], []
        for threaded, gradients in ((False, expected), (True, found)):
            model = make_visual().train()
            model.set_grad_checkpointing(True)
            with anchorprune.prune(model, strategy, **SMALL[strategy]):
                for _ in range(2):  # the second step finds nothing of the first in that thread
                    loss = model(images).square().sum()
                    if threaded:
                        thread = threading.Thread(target=loss.backward)
                        thread.start()
                        thread.join()
                    else:
                        loss.backward()
                    images = images.flip(0)
            gradients.extend(parameter.grad for parameter in model.parameters())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_which_nothing_is_trained_needs_no_gradient(images: Tensor) -> None:
    model = make_visual()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head = nn.Linear(16, 2)
    with anchorprune.prune(model, "coarse", keep_patches=6):
        head(model(images)).sum().backward()
    assert head.weight.grad is not None
