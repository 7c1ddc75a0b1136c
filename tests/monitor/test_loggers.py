import sys
from types import SimpleNamespace

import pytest

from guerdon import registry
from guerdon.errors import GuerdonError, RecipeError
from guerdon.monitor.loggers import Logger, MlflowLogger, TensorBoardLogger, WandbLogger

CONFIG = {"name": "r", "sampling": {"prompts": 8, "empty": {}}, "rewards": [{"name": "task"}], "odd key!": "x" * 900}


def scalars(run_dir) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "loggers" / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_events_read_back(tmp_path):
    logger = TensorBoardLogger(str(tmp_path), "r", CONFIG)
    logger.log(0, {"reward/mean": 0.25, "loss": 1.0})
    logger.log(1, {"reward/mean": 0.5})
    logger.close()
    assert scalars(tmp_path) == {"reward/mean": [(0, 0.25), (1, 0.5)], "loss": [(0, 1.0)]}


def test_a_resumed_run_hides_the_steps_it_repeats_from_tensorboard(tmp_path):
    first = TensorBoardLogger(str(tmp_path), "r", CONFIG)
    for step in range(4):
        first.log(step, {"x": float(step)})
    first.close()
    second = TensorBoardLogger(str(tmp_path), "r", CONFIG)
    for step in range(2, 5):
        second.log(step, {"x": 10.0 * step})
    second.close()
    assert scalars(tmp_path) == {"x": [(0, 0.0), (1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]}


def test_closing_a_logger_that_never_logged_is_no_error(tmp_path):
    TensorBoardLogger(str(tmp_path), "r", CONFIG).close()
    assert not (tmp_path / "loggers").exists()


class FakeWandb:
    def __init__(self):
        self.inits, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.inits.append(options)
        return self

    def log(self, metrics, step):
        self.logged.append((step, metrics))

    def finish(self):
        self.finished += 1


def test_wandb_gets_config_and_metrics_and_resumes_the_same_run(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in range(2):
        logger = WandbLogger(str(tmp_path), "r", CONFIG, project="p", mode="offline", tags=["t"])
        logger.log(step, {"reward/mean": 0.25})
        logger.close()
    first, second = wandb.inits
    assert first["config"] == CONFIG
    assert (first["name"], first["project"], first["mode"], first["tags"]) == ("r", "p", "offline", ["t"])
    assert (first["id"], first["resume"]) == (second["id"], "allow")
    assert wandb.logged == [(0, {"reward/mean": 0.25}), (1, {"reward/mean": 0.25})]
    assert wandb.finished == 2
    other = tmp_path / "other"
    WandbLogger(str(other), "r", CONFIG)
    assert wandb.inits[-1]["id"] != first["id"]


class FakeMlflow:
    def __init__(self):
        self.calls = []

    def start_run(self, **options):
        self.calls.append(("start_run", options))
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def __getattr__(self, name):
        return lambda *args, **options: self.calls.append((name, *args, *options.values()))


def test_mlflow_gets_parameters_and_metrics_under_names_it_takes(tmp_path, monkeypatch):
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    logger = MlflowLogger(str(tmp_path), "r", CONFIG, tracking_uri="http://host", experiment="e")
    logger.log(3, {"reward/mean": 0.25, "watch/größe #1": 1})
    logger.close()
    params = {
        "name": "r",
        "sampling.prompts": "8",
        "sampling.empty": "{}",
        "rewards": "[{'name': 'task'}]",
        "odd key_": "x" * 500,
    }
    assert mlflow.calls == [
        ("set_tracking_uri", "http://host"),
        ("set_experiment", "e"),
        ("start_run", {"run_name": "r"}),
        ("log_params", params),
        ("log_metrics", {"reward/mean": 0.25, "watch/gr__e _1": 1.0}, 3),
        ("end_run",),
    ]


def test_mlflow_resumes_the_same_run_without_logging_parameters_again(tmp_path, monkeypatch):
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    MlflowLogger(str(tmp_path), "r", {})
    mlflow.calls.clear()
    MlflowLogger(str(tmp_path), "r", CONFIG)
    assert mlflow.calls == [("set_experiment", "guerdon"), ("start_run", {"run_id": "abc"})]


def test_mlflow_parameters_go_in_portions(tmp_path, monkeypatch):
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    MlflowLogger(str(tmp_path), "r", {f"k{i}": i for i in range(250)})
    portions = [call[1] for call in mlflow.calls if call[0] == "log_params"]
    assert [len(p) for p in portions] == [100, 100, 50]
    assert len({k for p in portions for k in p}) == 250


@pytest.mark.parametrize(
    ("logger", "module", "extra"),
    [
        (TensorBoardLogger, "torch.utils.tensorboard", "tensorboard"),
        (WandbLogger, "wandb", "wandb"),
        (MlflowLogger, "mlflow", "mlflow"),
    ],
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, logger, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(GuerdonError, match=rf'logger \'{extra}\' needs .* run: pip install "guerdon\[{extra}\]"'):
        logger(str(tmp_path), "r", CONFIG)


def test_a_tracker_that_refuses_to_start_says_what_to_do(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(GuerdonError, match=r"'wandb' does not start: .*api_key.*`wandb login`, or set mode: offline"):
        WandbLogger(str(tmp_path), "r", CONFIG)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(set_experiment=lambda name: refuse()))
    with pytest.raises(GuerdonError, match="'mlflow' does not start: .*tracking_uri"):
        MlflowLogger(str(tmp_path), "r", CONFIG)
    assert not (tmp_path / "loggers" / "mlflow").exists()


def test_loggers_are_registered_with_their_options_only():
    methods = {m.name: m for m in registry.methods("logger")}
    assert set(methods) >= {"tensorboard", "wandb", "mlflow"}
    assert set(methods["wandb"].options.model_fields) == {"project", "entity", "group", "tags", "mode"}
    assert methods["tensorboard"].validate({}) == {"flush_seconds": 30}
    with pytest.raises(RecipeError, match="logger 'wandb': 'mode' is 'of"):
        methods["wandb"].validate({"mode": "off"})
    with pytest.raises(RecipeError, match="logger 'mlflow' has no option 'tracking_url'; did you mean 'tracking_uri'"):
        methods["mlflow"].validate({"tracking_url": "x"})


def test_every_logger_follows_the_protocol(tmp_path):
    assert isinstance(TensorBoardLogger(str(tmp_path), "r", {}), Logger)
