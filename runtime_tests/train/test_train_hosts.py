"""A training in several processes: shares of a host, and two hosts, as network namespaces, that have no disk in common.

The result of four processes is one process's to 2e-4 in every parameter: gradients are added in another order.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("yaml")

import numpy as np  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from helpers.train_fixtures import CONFIG, make_bundle, make_text  # noqa: E402
from sol_rt.errors import UsageError  # noqa: E402
from sol_rt.train.run.checkpoints import load_checkpoint, save_checkpoint  # noqa: E402
from sol_rt.train.run.distributed import Group, joined  # noqa: E402

ADDRESSES = "10.213.46.1", "10.213.46.2"
Host = Sequence[str]
"""The words in front of a command that run it on a host."""


def test_a_process_has_its_share_of_its_host() -> None:
    group = Group(rank=5, size=8, local_rank=1, local_size=4)
    assert [group.threads(cores) for cores in (16, 7, 2)] == [4, 1, 1]
    assert [str(group.device(gpus)) for gpus in (4, 8, 0)] == ["cuda:1", "cuda:1", "cpu"]
    with pytest.raises(UsageError, match=r"got 4 processes on a host with 2 GPUs.*--nproc-per-node 2"):
        group.device(2)
    assert Group().threads(6) == 6


@pytest.mark.parametrize(("name", "value"), [("LOCAL_RANK", None), ("LOCAL_RANK", "7"), ("RANK", "one")])
def test_variables_that_no_launcher_sets_are_refused(
    name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(each, "2" if "SIZE" in each else "1")
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"expected .*; start with torchrun"), joined():
        pass


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    """Two network namespaces with a cable between them."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need the program ip and root")
    names = [f"sol{os.getpid()}{letter}" for letter in "ab"]
    try:
        for name in names:
            made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"ip netns add: {made.stderr.strip()}")
        cable = ["ip", "link", "add", "cable", "netns", names[0], "type", "veth", "peer", "cable", "netns", names[1]]
        subprocess.run(cable, check=True)
        for name, address in zip(names, ADDRESSES, strict=True):
            for words in (["address", "add", f"{address}/24", "dev", "cable"], ["link", "set", "cable", "up"]):
                subprocess.run(["ip", "-n", name, *words], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, a text, a config, and in `out` what one process makes of them."""
    folder = tmp_path_factory.mktemp("alone")
    make_bundle(folder / "tiny")
    make_text(folder / "text.txt")
    (folder / "config.yaml").write_text(CONFIG.replace("windows: 2, episodes", "windows: 4, episodes"))
    done = subprocess.run([sys.executable, *arguments(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def arguments(folder: Path) -> list[str]:
    given = ["-m", str(folder / "tiny"), "--data", str(folder / "text.txt"), "--config", str(folder / "config.yaml")]
    return ["-m", "sol_rt", "train", *given, "-o", str(folder / "out"), "-t", "1"]


def copies(alone: Path, folder: Path) -> list[Path]:
    """Folders of two hosts: the inputs, and no training."""
    return [shutil.copytree(alone, folder / name, ignore=shutil.ignore_patterns("out")) for name in "ab"]


def start(hosts: list[Host], folders: list[Path], *more: str) -> list[subprocess.Popen[str]]:
    """Starts two processes on each host. Each host has a folder of its own."""
    started = []
    for number, (host, folder) in enumerate(zip(hosts, folders, strict=True)):
        launch = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2", "--node-rank", str(number)]
        launch += ["--master-addr", ADDRESSES[0], "--master-port", "29500"]
        command = [*host, sys.executable, *launch, *arguments(folder), *more]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "cable"}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment))
    return started


@pytest.mark.slow
def test_two_hosts_without_a_common_disk_train_as_one_process(hosts: list[Host], alone: Path, tmp_path: Path) -> None:
    """A file that one host has is used on both; one that is not whole on neither; the second host has no checkpoint."""
    folders, measured = copies(alone, tmp_path), alone / "out" / "counterfactuals"
    stores = [folder / "out" / "counterfactuals" for folder in folders]
    for store in stores:
        store.mkdir(parents=True)
        shutil.copy(measured / "about.json", store)
    half, whole = stores[0] / "train-000000.safetensors", stores[1] / "train-000001.safetensors"
    half.write_bytes((measured / half.name).read_bytes()[:-1000])
    shutil.copy(measured / whole.name, whole)
    before = whole.stat().st_mtime_ns
    for more in ([], ["--resume"]):
        for process in start(hosts, folders, *more):
            said = process.communicate()[1]
            assert process.returncode == 0, said
        if not more:
            one, four = (load_file(folder / "out" / "policy.safetensors") for folder in (alone, folders[0]))
            for name in one:
                np.testing.assert_allclose(four[name], one[name], atol=2e-4, err_msg=name)
            # one more update, of both hosts
            state = load_checkpoint(folders[0] / "out")
            save_checkpoint(folders[0] / "out", {**state, "stage": "grpo", "update": 3})
    assert load_checkpoint(folders[0] / "out")["step"] == load_checkpoint(alone / "out")["step"] + 1
    for store in stores:
        assert {path.name for path in store.iterdir()} == {path.name for path in measured.iterdir()}
        for path in measured.iterdir():
            assert (store / path.name).read_bytes() == path.read_bytes(), path.name
    assert whole.stat().st_mtime_ns == before
    assert not (folders[1] / "out" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_hosts_with_other_texts_are_refused(hosts: list[Host], alone: Path, tmp_path: Path) -> None:
    folders = copies(alone, tmp_path)
    make_text(folders[1] / "text.txt", 2900)
    for process in start(hosts, folders):
        said = process.communicate()[1]
        assert process.returncode != 0
        assert "sol-rt: error: text: process 2 got" in said


@pytest.mark.slow
def test_a_lost_host_ends_the_others_with_a_line(hosts: list[Host], alone: Path, tmp_path: Path) -> None:
    folders = copies(alone, tmp_path)
    for folder in folders:
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("updates: 12", "updates: 100000"))
    processes = start(hosts, folders)
    log = folders[0] / "out" / "train.jsonl"
    while not log.exists() or "warm start" not in log.read_text():
        assert processes[0].poll() is None, processes[0].communicate()[1]
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(processes[1].pid)], check=True, capture_output=True, text=True)
    for pid in (processes[1].pid, *map(int, workers.stdout.split())):
        os.kill(pid, signal.SIGKILL)
    said = processes[0].communicate()[1]
    assert processes[0].returncode != 0
    assert "sol-rt: error: process 0 of 4: lost another process" in said
    processes[1].communicate()
