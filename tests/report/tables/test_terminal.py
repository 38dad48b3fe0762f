import io

import pytest
from rich.console import Console

from cdpo_lightning.report import dual_round_line, final_table, say, verdict
from cdpo_lightning.report.run.verdict import tone

AT_OPTIMUM = (
    "C-DPO: E[cost] -0.29 ± 0.04 vs limit -0.30 · lambda 1.17 (exact 1.16)"
    " · KL to the optimum 0.009 nats: the method reached the optimum."
)
ROW = {
    "round": 7,
    "dual/lambda": 1.162,
    "dual/lambda_next": 1.17,
    "dual/expected_cost": -0.31,
    "dual/expected_cost_se": 0.02,
    "dual/violation": -0.01,
    "dual/label_flips": 0.021,
    "dual/effective_sample_size": 0.78,
}


def _console(encoding: str = "utf-8") -> Console:
    return Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding), width=100)


def _written(console: Console) -> str:
    console.file.flush()
    return console.file.buffer.getvalue().decode()


def _sampled(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if not key.startswith("exact/")}


def test_a_policy_at_the_optimum_is_reported_as_such(metrics) -> None:
    assert verdict(metrics) == AT_OPTIMUM
    assert tone(metrics) == "good"


@pytest.mark.parametrize(
    ("change", "end", "colour"),
    [
        (
            {"dual/alarm": "infeasible", "dual/c_limit": -3.0, "dual/lambda": 40.0},
            "vs limit -3.00 · lambda 40.00 · no policy can meet the limit: C_limit -3.00 is below the reachable minimum -2.10.",
            "bad",
        ),
        (
            {"dual/alarm": "pinned_at_zero", "dual/lambda": 0.0, "exact/lambda": 0.0},
            "the method reached the optimum · the limit does not bind: lambda = 0.",
            "good",
        ),
        (
            {"dual/alarm": "pinned_at_zero", "dual/lambda": 0.0, "exact/cdpo/kl_to_optimum": 0.6},
            "0.600 nats: not at the optimum · lambda is pinned at 0 although the limit binds.",
            "warn",
        ),
        (
            {"dual/alarm": "saturated", "exact/cdpo/kl_to_optimum": 0.6},
            "lambda is saturated at constraint.lambda_max: raise it, or loosen constraint.c_limit.",
            "warn",
        ),
        (
            {"exact/cdpo/kl_to_optimum": 0.2, "eval/cdpo/feasible": "yes"},
            "KL to the optimum 0.200 nats: not at the optimum · the limit is met.",
            "good",
        ),
        (
            {"exact/cdpo/support_mass": 0.29},
            "KL to the optimum 0.009 nats, but only 29.0 % of its probability is on valid responses"
            " · the limit lies within the interval: undecided, evaluate more samples.",
            "warn",
        ),
        ({"eval/cdpo/feasible": "no"}, "KL to the optimum 0.009 nats · the limit is not met.", "bad"),
    ],
)
def test_each_result_has_its_sentence(metrics, change, end, colour) -> None:
    assert verdict(metrics | change).endswith(end)
    assert tone(metrics | change) == colour


@pytest.mark.parametrize(
    ("feasible", "message"), [("yes", "the limit is met"), ("no", "the limit is not met"), ("undecided", "undecided")]
)
def test_without_exact_metrics_the_interval_decides(metrics, feasible, message) -> None:
    sentence = verdict(_sampled(metrics) | {"eval/cdpo/feasible": feasible})
    assert message in sentence
    assert "exact" not in sentence
    assert "optimum" not in sentence


def test_an_infeasible_alarm_without_an_exact_minimum_does_not_say_that_no_policy_can(metrics) -> None:
    sentence = verdict(_sampled(metrics) | {"dual/alarm": "infeasible"})
    assert "no policy can" not in sentence
    assert "looks infeasible" in sentence


def test_a_run_without_a_constraint_is_not_compared_with_a_limit(metrics) -> None:
    plain = {key: value for key, value in _sampled(metrics).items() if not key.startswith(("dual/", "eval/cdpo/"))}
    assert verdict(plain) == "DPO: E[reward] 1.10 ± 0.05 · E[cost] 0.60 ± 0.04 · no constraint."
    assert tone(plain) == "plain"


def test_the_verdict_is_about_the_method_of_the_run(metrics) -> None:
    assert verdict(metrics | {"run/method": "dpo"}).startswith("DPO: E[cost] 0.60")
    assert verdict({"eval/mine/cost_mean": 1.0, "eval/dpo/cost_mean": 2.0}).startswith("mine: ")


def test_without_an_evaluation_the_verdict_is_about_the_last_dual_round() -> None:
    last = {"dual/expected_cost": 1.0, "dual/expected_cost_se": 0.1, "dual/c_limit": 0.0, "dual/lambda": 0.5}
    assert verdict(last) == "C-DPO: E[cost] 1.00 ± 0.20 vs limit 0.00 · lambda 0.50 · the limit was not tested."
    assert verdict({}) == "No policy was evaluated in this run."


def test_a_dual_round_is_one_line() -> None:
    assert dual_round_line(ROW) == ("round 07  lambda 1.162 -> 1.170   E[c] -0.31 ± 0.04 (limit -0.30)   flips 2.1 %   ESS 78.0 %")


def test_a_dual_round_with_few_metrics_is_one_line_too() -> None:
    assert dual_round_line({"round": 12, "dual/lambda": 0.5, "dual/expected_cost": 1.0}) == (
        "round 12  lambda 0.500 -> –   E[c] 1.00"
    )


def test_the_table_fits_100_columns(metrics) -> None:
    for who, size in (("ppo_lag", -11.64), ("cdpo_fixed", -10.58)):
        metrics |= {f"eval/{who}/{key}": size for key in ("reward_mean", "cost_mean")}
        metrics |= {f"eval/{who}/{key}_ci_low": size - 10.13 for key in ("reward", "cost")}
        metrics |= {f"eval/{who}/{key}_ci_high": size + 10.13 for key in ("reward", "cost")}
    console = _console()
    final_table(metrics, console)
    lines = _written(console).splitlines()
    assert max(map(len, lines)) <= 100
    line = next(line for line in lines if line.startswith(" C-DPO "))
    assert line.split() == [
        "C-DPO",
        *["0.70", "±", "0.05"],
        *["-0.29", "±", "0.04", "33.3", "%", "0.033", "undecided", "0.009", "99.8", "%"],
    ]
    assert any("-11.64 ± 10.13" in line for line in lines)


def test_the_table_has_exact_columns_only_where_they_were_measured(metrics) -> None:
    console = _console()
    final_table(_sampled(metrics), console)
    final_table({}, console)
    assert "support" not in _written(console)


def test_symbols_that_a_terminal_cannot_encode_are_spelled_out(metrics) -> None:
    console = _console("ascii")
    final_table(metrics, console)
    say(verdict(metrics), console)
    assert "-0.29 +/- 0.04" in _written(console)


def test_brackets_are_text_and_not_markup() -> None:
    console = _console()
    say("[red]E[cost][/red]", console)
    final_table({"eval/[bold]me/cost_mean": 1.0}, console)
    assert "[red]E[cost][/red]" in _written(console)
    assert "[bold]me" in _written(console)
