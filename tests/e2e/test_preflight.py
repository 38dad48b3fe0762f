"""The pre-flight check (mode=check): what it reports without a GPU, a network or weights, and what it refuses."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from cdpo_lightning.config import RunConfig
from cdpo_lightning.errors import CDPOError, ConfigError, ModelError
from cdpo_lightning.models.sampling import vllm_generation
from cdpo_lightning.pipeline.preflight import checks as preflight
from cdpo_lightning.pipeline.run import check

Configure = Callable[..., RunConfig]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_the_plan_of_llama_on_a_machine_without_gpu_network_and_weights(
    configuration: Configure, offline: None, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2e12, 1e12, 1e12))  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from hydra import compose, initialize_config_dir

    from cdpo_lightning.config import parse

    root = Path(__file__).resolve().parent.parent.parent
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        choices = ["+experiment=llama2_cdpo", "trainer=deepspeed_zero3", f"run_dir={tmp_path / 'run'}"]
        check(parse(compose("config", choices)))
    message = capsys.readouterr().out
    for what in ("hardware", "data", "tokenizer", "rows, step 0 and cost sign"):
        assert re.search(rf"^{what} +not checked: ", message, re.MULTILINE), what
    assert "6.74 billion parameters" in message
    assert "8 ranks" in message
    table = {
        name: [float(x) for x in re.findall(r"[\d.]+", rest)] for name, rest in re.findall(r"^ {11}(\w+) (.*)$", message, re.M)
    }
    assert table["ddp"][:3] == [26.95, 53.91, 53.91]
    assert table["zero3"][0] == pytest.approx(26.95 / 8, abs=0.01)
    assert "<- trainer" in next(line for line in message.splitlines() if "zero3 " in line)
    assert re.search(r"^stage +policy +.*4 dual rounds", message, re.MULTILINE)
    assert "mode=check" in message.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_step_0_has_loss_ln_2_and_the_plan_looks_into_the_store(configure: Configure, capsys: Capture) -> None:
    check(
        configure("mode=check", "dataset.scores=learned", "method.baselines=[sft,dpo,pd_dpo,ppo_lag]", "method.baseline_epochs=1")
    )
    message = capsys.readouterr().out
    assert re.search(
        r"^stage +policy +dpo 1 epochs, 1 dual rounds, pd_dpo \d+ and \d+ epochs, ppo_lag \d+ rounds, cdpo \d+ epochs",
        message,
        re.M,
    )
    assert "loss 0.6931" in message
    assert re.search(r"^rows +32 pairs: prompts .* 0 cut; responses .* the others end with <eos>$", message, re.MULTILINE)
    assert re.search(
        r"^stage +sft +12 epochs of \d+ examples, at most \d+ steps; (not in the store|the store has it)$", message, re.M
    )


def test_a_missing_sampling_engine_is_reported(configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(vllm_generation, "find_spec", lambda name: None)
    check(configure("mode=check", "generation.engine=vllm"))
    assert re.search(r"^sampling +not checked: .*vllm", capsys.readouterr().out, re.MULTILINE)


def test_a_wrong_reference_log_probability_is_an_error(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    right = preflight.response_logp_of_rows
    monkeypatch.setattr(preflight, "response_logp_of_rows", lambda *args: right(*args) + 0.5)
    with pytest.raises(CDPOError, match=r"step 0: .*0\.5"):
        check(configure("mode=check"))


class FirstWordScorer:
    """A scorer that recognises the harmless anchor answers by their first word."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def score(self, texts: list[tuple[str, str]]) -> torch.Tensor:
        harmless = [answer.startswith(("I ", "Please")) for _, answer in texts]
        return self.sign * torch.tensor([-1.0 if kind else 1.0 for kind in harmless], dtype=torch.float64)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_cost_model_of_the_opposite_sign_is_refused(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path, sign: float
) -> None:
    monkeypatch.setattr(preflight, "load_published", lambda *_: FirstWordScorer(sign))
    config = configure("mode=check", f"cost.path={tmp_path}", "dataset.scores=oracle")
    if sign > 0:
        check(config)
        assert re.search(r"^cost sign .*\+1\.00.*-1\.00", capsys.readouterr().out, re.MULTILINE)
    else:
        with pytest.raises(ModelError, match=r"harmful .*-1\.00.*harmless .*1\.00"):
            check(config)


def test_flex_attention_without_a_gpu_is_refused(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choices = ("mode=check", "model.path=somewhere", "model.attention=flex_attention", "trainer.accelerator=auto")
    with pytest.raises(ConfigError, match=r"model.attention=flex_attention: .*trainer.accelerator=auto"):
        check(configure(*choices))


def test_a_full_disk_is_reported_by_a_check_and_stops_a_run(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    check(configure("mode=check"))
    assert "TOO LITTLE" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"run_dir=.*GB.*disk"):
        check(configure())
