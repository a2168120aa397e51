"""Trackers: every step arrives, nothing leaves the machine, what cannot log is refused."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import sys
import traceback

import pytest
import yaml
from train_runs import Hooked, build_material, metrics, run

from giraffe_cli.errors import Interrupted, InvalidInput

MEASURED = {"held_out_every": 2, "held_out_windows": 2}


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize(
    ("tracker", "message"),
    [("wandbb", "unknown tracker `wandbb`"), ("comet_ml", "tracker `comet_ml` is not installed")],
)
def test_a_tracker_that_cannot_log_is_refused_before_training(material, tmp_path, tracker, message):
    with pytest.raises(InvalidInput, match=message):
        run(material, tmp_path, trackers=[tracker])


def test_tensorboard_gets_every_step_and_measurement(material, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(material, tmp_path, trackers=["tensorboard"], **MEASURED)
    events = EventAccumulator(str(tmp_path / "trackers" / "giraffe")).Reload()
    for key in ("loss", "grad_norm", "held_out_nll"):
        logged = {event.step: event.value for event in events.Scalars(key)}
        expected = {m["step"]: m[key] for m in metrics(tmp_path) if key in m}
        assert logged == pytest.approx(expected, rel=1e-6)  # kept in float32


def test_tensorboard_gets_what_tells_one_run_from_another(material, tmp_path):
    pytest.importorskip("tensorboard")
    run(material, tmp_path, trackers=["tensorboard"])
    (told,) = (tmp_path / "trackers" / "giraffe").glob("*/hparams.yml")
    kept = yaml.safe_load(told.read_text())
    assert (kept["loss"], kept["method"], kept["strategy"]) == ("ce", "lora", "yarn")
    assert (kept["lora.rank"], kept["seed"]) == (2, 7)
    assert kept["lora.targets"].startswith("q_proj, k_proj")
    assert "decay_steps" not in kept, "it is not set"


def test_trackio_gets_every_step_without_a_network_and_a_resumed_part_goes_on(
    material, tmp_path, capfd
):
    """In a child, whose trackio has a folder of its own and whose sockets only reach this host."""
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    assert "trackio" not in sys.modules  # it reads its folder when it is imported
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.environ["TRACKIO_DIR"] = str(tmp_path / "trackio")
            forbid_network()
            stopped = Hooked(lambda step: step == 3 and signal.raise_signal(signal.SIGTERM))
            with contextlib.suppress(Interrupted):
                run(material, tmp_path / "run", stopped, trackers=["trackio"], **MEASURED)
            assert len(metrics(tmp_path / "run")) == 3
            run(material, tmp_path / "run", trackers=["trackio"], **MEASURED)
            import trackio
            from trackio.sqlite_storage import SQLiteStorage

            (found,) = trackio.Api().runs("giraffe")
            logs = SQLiteStorage.get_logs("giraffe", found.name)
            (tmp_path / "told.json").write_text(json.dumps([found.name, logs]))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    name, told = json.loads((tmp_path / "told.json").read_text())
    assert name.startswith("run-")
    for key in ("loss", "held_out_nll"):
        logged = {line["step"]: line[key] for line in told if key in line}
        assert logged == pytest.approx(
            {m["step"]: m[key] for m in metrics(tmp_path / "run") if key in m}
        )
    assert capfd.readouterr().out == ""  # stdout is data


def forbid_network():
    """Connections to anything but this host raise."""
    connect = socket.socket.connect

    def only_here(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"connected to {address}")
        return connect(self, address)

    socket.socket.connect = only_here
