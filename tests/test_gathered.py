"""Cut weights without other processes: what is refused, the copy with whole weights, and the
optimiser's rows, read from as many files as there were ranks."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from native_reasoning.config.errors import ConfigError, RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.model.ranks import (
    WholeCopy,
    fill,
    in_shards,
    load_state,
    save_shards,
    stand_in,
)
from tiny import tiny_model

IDS = torch.arange(3, 13)[None]


def accelerator(kind: DistributedType, **plugin) -> SimpleNamespace:
    about = SimpleNamespace(**plugin)
    state = SimpleNamespace(fsdp_plugin=about, deepspeed_plugin=about)
    return SimpleNamespace(distributed_type=kind, state=state)


def test_fsdp_leaves_the_arithmetic_to_autocast():
    plugin = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "mixed_precision_policy": 1}
    here = accelerator(DistributedType.FSDP, **plugin)
    assert stand_in(tiny_model(), here) is not None
    assert here.state.fsdp_plugin.mixed_precision_policy is None
    assert stand_in(tiny_model(), accelerator(DistributedType.MULTI_CPU)) is None


@pytest.mark.parametrize(
    ("kind", "plugin", "lagging", "says"),
    [
        ("FSDP", {"fsdp_version": 1, "cpu_ram_efficient_loading": False}, False, "FSDP version 1"),
        ("FSDP", {"fsdp_version": 2, "cpu_ram_efficient_loading": True}, False, "cpu_ram"),
        ("DEEPSPEED", {"zero_stage": 3}, True, "lagging copy"),
        ("DEEPSPEED", {"zero_stage": 3}, False, "an adapter"),
    ],
)
def test_ways_of_cutting_that_do_not_work_are_refused(kind, plugin, lagging, says):
    model = tiny_model()
    if says == "an adapter":
        model.get_input_embeddings().weight.requires_grad_(False)
    with pytest.raises(ConfigError, match=says):
        stand_in(model, accelerator(DistributedType[kind], **plugin), lagging=lagging)


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_copy_has_weights_only_while_it_is_filled(tied):
    model = tiny_model(tie_word_embeddings=tied).eval()
    copy = WholeCopy(model)
    assert sum(p.numel() for p in copy.model.parameters()) == 0
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)  # after the copy was made
        with copy.filled(model) as one:
            assert torch.equal(one(IDS).logits, model(IDS).logits)
            head, table = one.get_output_embeddings(), one.get_input_embeddings()
            assert (head.weight is table.weight) is tied
    assert sum(p.numel() for p in copy.model.parameters()) == 0


def test_weights_of_another_model_are_filled_in():
    one, other = tiny_model(), tiny_model()
    with torch.no_grad():
        for p in one.parameters():
            p.add_(1.0)
    fill(one, other)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# -- The optimiser's rows --------------------------------------------------------------------------


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.arange(6.0).view(2, 3)).square().sum().backward()
        optimizer.step()


def dealt(folder: Path, ranks: int) -> None:
    """What so many ranks would have written, from the file of one. Some have no row at all."""
    (path,) = folder.glob("optimizer-*")
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        whole = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path.unlink()
    for rank in range(ranks):
        mine, rows = {}, {}
        for name, tensor in whole.items():
            mine[name] = tensor
            if tensor.dim():
                each = -(-len(tensor) // ranks)
                first, after = (min(n * each, len(tensor)) for n in (rank, rank + 1))
                mine[name], rows[name] = tensor[first:after].clone(), [first, after]
        name = f"optimizer-{rank:05}-of-{ranks:05}.safetensors"
        save_file(mine, folder / name, metadata={**about, "rows": json.dumps(rows)})


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_rows_of_any_number_of_ranks_make_the_same_state(ranks, tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.9))
    stepped(model, optimizer)
    save_shards(model, optimizer, tmp_path, 0, 1)
    assert in_shards(tmp_path)
    dealt(tmp_path, ranks)
    other = net()
    fill(other, model)
    again = torch.optim.AdamW(other.parameters(), lr=0.5)
    load_state(other, again, tmp_path)
    assert again.param_groups[0]["lr"] == 0.1
    assert again.param_groups[0]["betas"] == (0.8, 0.9)
    stepped(model, optimizer)
    stepped(other, again)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("ranks", [0, 2])
def test_an_optimiser_without_a_state_goes_on_too(ranks, tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepped(model, optimizer)
    if ranks:
        save_shards(model, optimizer, tmp_path, 0, 1)
        dealt(tmp_path, ranks)
    else:
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    again = torch.optim.SGD(model.parameters(), lr=0.5)
    load_state(model, again, tmp_path)
    assert again.param_groups[0]["lr"] == 0.1


def test_the_state_of_another_model_is_refused(tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    stepped(model, optimizer)
    with pytest.raises(RunError, match="neither"):
        load_state(model, optimizer, tmp_path)
    save_shards(model, optimizer, tmp_path, 0, 1)
    other = nn.Sequential(nn.Linear(3, 5))
    with pytest.raises(RunError, match="2 of 2 are the same"):
        load_state(other, torch.optim.AdamW(other.parameters()), tmp_path)


def test_the_launchers_arithmetic_is_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert NRTConfig(output_dir=str(tmp_path), use_cpu=True).resolved()["bf16"] is True
