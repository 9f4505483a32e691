"""The scripts for real models, on their tiny stand-ins: equal to one process, launched as on one machine and as on two."""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from llmcourse.sharding import collectives, launch, plan
from llmcourse.sharding.scripts import rank, ring, task, train, with_deepspeed

SMOKE = {"smoke": True, "batch": 2, "lr": 1e-2}
RANKS = 2


def options(**changed) -> argparse.Namespace:
    found = task.options("For a test.").parse_args([])
    return argparse.Namespace(**vars(found) | SMOKE | changed)


@pytest.fixture(scope="module")
def alone() -> list[float]:
    """Losses of one process on the rows that two ranks read together, in float32."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LLMCOURSE_STANDIN", "1")
    o = options(batch=RANKS * SMOKE["batch"])
    with rank.alone() as here:
        model, rows = task.load(o)
        optimizer, losses = torch.optim.AdamW(model.parameters(), lr=o.lr), []
        for step in range(o.steps):
            loss = task.loss_of(model, task.batch(rows, step, o.batch, here.device))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    patch.undo()
    return losses


# --- FSDP2 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> list[dict]:
    """All weights trained on two ranks, layers computed again."""
    return launch.run("fsdp", ranks=RANKS, patience=300, quiet=True, checkpointing=True, **SMOKE).results


def test_fsdp_trains_as_one_process_does_as_far_as_bfloat16_allows(whole, alone):
    """The model learns by far more than the tolerance in three steps."""
    assert alone[0] - alone[-1] > 0.3
    for report in whole:
        assert report["losses"] == pytest.approx(alone, abs=0.01)


def test_fsdp_holds_the_sixteen_bytes_that_were_planned(whole):
    """Divided otherwise between master and parameter, and padded parameter by parameter."""
    for report in whole:
        held, planned = (sum(report[of][kind] for kind in report["bytes"]) for of in ("bytes", "planned"))
        assert held == pytest.approx(planned, rel=0.002)


def test_lora_trains_few_numbers_beside_frozen_bfloat16_weights_and_saves_them_whole(whole, tmp_path):
    """The file has every A and B and nothing else."""
    file = tmp_path / "new" / "adapter.safetensors"
    (report, _) = launch.run("fsdp", ranks=RANKS, patience=300, quiet=True, lora=4, save=file, **SMOKE).results
    saved = load_file(file)
    assert saved and all(name.rpartition(".")[2] in "AB" for name in saved)
    numbers = sum(tensor.numel() for tensor in saved.values())
    assert report["bytes"]["gradients"] == pytest.approx(4 * numbers / RANKS, rel=0.1)
    assert report["bytes"]["parameters"] < 0.6 * whole[0]["bytes"]["parameters"]
    assert sum(report["planned"][kind] for kind in report["bytes"]) == pytest.approx(sum(report["bytes"].values()), rel=0.002)
    assert report["losses"][-1] < report["losses"][0]


# --- accelerate and DeepSpeed --------------------------------------------------------------------------------------------


def test_accelerate_trains_as_one_process_does(alone):
    """On CPUs as DDP, in float32."""
    lines = launch.run("with_accelerate", ranks=RANKS, patience=300, quiet=True, **SMOKE).lines
    losses = [float(found[1]) for _, line in lines if (found := re.search(r"loss ([\d.]+)", line))]
    assert (0, "2 ranks, MULTI_CPU") in lines
    assert losses == pytest.approx(alone, abs=2e-3)


def test_accelerates_file_asks_for_zero_3_in_mixed_precision():
    """And has no field that accelerate does not know, which it would refuse."""
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(launch.SCRIPTS / "accelerate.yaml"))
    assert (found.distributed_type, found.mixed_precision, found.num_processes) == ("FSDP", "bf16", 8)
    assert found.fsdp_config["fsdp_version"] == 2 and found.fsdp_config["fsdp_reshard_after_forward"]
    from accelerate.commands.launch import launch_command_parser

    known = {action.dest for action in launch_command_parser()._actions}
    assert set(found.fsdp_config) <= known


def test_deepspeeds_file_is_what_the_calculator_plans():
    """Stage 3 in bf16: 1.9 GB of 7.5 billion parameters on each of 64 GPUs."""
    config = json.loads(with_deepspeed.CONFIG.read_text(encoding="utf-8"))
    layout, precision = with_deepspeed.layout_and_precision(config, 64)
    assert (layout, precision) == (plan.Layout(data=64, stage=3), "mixed")
    held = plan.state_bytes(7_500_000_000, layout.data, layout.stage, precision)
    assert sum(held.values()) / 1e9 == pytest.approx(1.9, abs=0.05)
    assert config["gradient_clipping"] == 1.0 and config["optimizer"]["type"] == "AdamW"


def test_other_stages_and_precisions_of_deepspeed_are_planned_as_such():
    """float16, which the calculator does not know, is refused."""
    config = {"zero_optimization": {"stage": 1}}
    assert with_deepspeed.layout_and_precision(config, 8) == (plan.Layout(data=8, stage=1), "float32")
    with pytest.raises(ValueError, match="use bf16"):
        with_deepspeed.layout_and_precision(config | {"fp16": {"enabled": True}}, 8)


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="it is installed here")
def test_without_deepspeed_its_script_says_what_to_do(monkeypatch):
    """Before it loads anything."""
    monkeypatch.setattr(sys, "argv", ["with_deepspeed.py", "--smoke"])
    with pytest.raises(SystemExit, match=r"pip install deepspeed.*fsdp\.py --smoke"):
        with_deepspeed.main()


# --- torchrun --------------------------------------------------------------------------------------------------------------


def test_two_machines_meet_as_the_scripts_say():
    """Two agents with a rank each, on this one; rank 0 prints the result, as nobody launched it from a notebook."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    command = [sys.executable, "-m", "torch.distributed.run", *words, "--rdzv-id", "test", str(launch.SCRIPTS / "ring.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    agents = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    try:
        printed = "".join(agent.communicate(timeout=300)[0] for agent in agents)
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0]
    (result,) = (json.loads(line) for line in printed.splitlines() if '"kind": "result"' in line)
    shares = {row["collective"]: row["sent"] / row["bytes"] for row in result["value"]}  # the first rank's, the root's
    assert shares == {"all_reduce": 1.0, "reduce_scatter": 0.5, "all_gather": 0.5, "broadcast": 1.0, "all_to_all": 0.5}
    assert all(row["ranks"] == 2 and row["error"] < 1e-5 for row in result["value"])


def test_every_collective_by_hand_has_its_counterpart_in_the_library():
    """On one rank each of them gives back what it got."""
    with rank.alone() as here:
        group = torch.distributed.new_group([here.rank])
        for name in ring.LIBRARY:
            assert callable(getattr(collectives, name))
            row = ring.compare(name, torch.randn(1, 5) if name == "all_to_all" else torch.randn(5), group)
            assert (row["messages"], row["sent"], row["error"], row["bytes"]) == (0, 0, 0.0, 20)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("zero4", "'zero4' is unknown; choose from single, ddp"),
        ("zero3:quick", "'quick' is unknown; choose from checkpointing, mixed, late, resumed"),
        ("ddp:mixed", "mixed is for zero1, zero2, zero3 only"),
        ("zero3:resumed", "give the checkpoint's directory with --load"),
    ],
)
def test_strategies_and_flags_that_do_not_fit_are_refused_before_anything_starts(word, says, capsys):
    """With those that there are."""
    with pytest.raises(SystemExit):
        train.parsed(["--strategy", "zero3", word])
    assert says in capsys.readouterr().err
