"""What makes a step cheaper: on by default, no number changes, and refused where it cannot hold."""

import json
from contextlib import contextmanager

import pytest
import torch
from test_resume_options import SHAPE

from cc_model import report
from cc_model.data.collator import ParallelCollator
from cc_model.integrations.trainer import STOCK_KEYS, CCTrainer, PlainCollator, histogram
from train.common.arguments import CollatorArguments, DataArguments, ModelArguments, SftArguments, parse
from train.common.training import check_training
from train.data import build_rows
from train.sft import main, run_sft

OFF = ("--share_pivots", "false", "--loss_only", "false", "--pivot_graph", "false")
LANGUAGES = ("de", "es", "fr", "ja")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """32 rows, four translations of each of eight English prompts, and four rows without English."""
    data = build_rows(languages=["en", *LANGUAGES], relations=["currency"], held_out=0.0)["train"]
    prompts = list(dict.fromkeys(row["instruction_en"] for row in data if row["instruction_en"]))
    found = {english: [row for row in data if row["instruction_en"] == english] for english in prompts}
    chosen = [row for translations in found.values() if len(translations) == 4 for row in translations][:32]
    assert len(chosen) == 32
    english = [row for row in data if row["language"] == "en"][:4]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen + english), encoding="utf-8")
    return path


@pytest.fixture
def options(rows, tmp_path):
    """The command line of a short training: four micro-batches of four rows in each step."""

    def make(*further, out="out"):
        fields = {
            **{"scratch": json.dumps(SHAPE), "scratch_vocab_size": 400, "max_length": 64, "dataset": rows},
            **{"output_dir": tmp_path / out, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
            **{
                "max_steps": 4,
                "learning_rate": 0.1,
                "optim": "sgd",
                "logging_steps": 1,
                "use_cpu": True,
                "save_strategy": "no",
            },
        }
        return [text for name, value in fields.items() for text in (f"--{name}", str(value))] + list(further)

    return make


def run(arguments):
    """The trainer of a command line, after it has trained."""
    groups = (ModelArguments, DataArguments, CollatorArguments, SftArguments)
    return run_sft(*parse(groups, "train.sft", "", arguments))


def logged(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("packed", ["false", "true"])
def test_the_switches_change_no_number(options, packed):
    ours = run(options("--packed", packed))
    off = run(options("--packed", packed, *OFF, out="off"))
    assert (ours.data_collator.share_pivots, ours.data_collator.loss_only) == (True, True)
    assert (off.data_collator.share_pivots, off.data_collator.loss_only) == (False, False)
    assert report(ours.model).notes[-1].startswith("pivot graph: not used (the model is on cpu")
    assert not any("pivot graph" in note for note in report(off.model).notes)
    found, expected = logged(ours), logged(off)
    assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in expected], abs=1e-5)
    assert [histogram(entry) for entry in found] == [histogram(entry) for entry in expected]
    assert ours.pivot_parts <= 5, "a pass for each of 4 steps, not of 13 micro-batches; packed, one is cut in two"
    assert ours.pivot_rows <= 4 * 8 < sum(entry["decision/rows"] for entry in found)


def test_a_stock_model_gets_stock_batches(options):
    """The same rows in the same order; head and loss run on all tokens, as without us."""
    ours = run(options("--method", "vanilla"))
    off = run(options("--method", "vanilla", *OFF, out="off"))
    assert isinstance(ours.data_collator, PlainCollator)
    assert set(ours.data_collator(list(ours.train_dataset.select(range(4))))) <= set(STOCK_KEYS)
    assert [entry["loss"] for entry in logged(ours)] == [entry["loss"] for entry in logged(off)]
    assert ours.pivot_parts == 0


@contextmanager
def recorded(monkeypatch):
    """The rows of each batch that is collated while a training runs."""
    seen, stock = [], ParallelCollator.__call__

    def call(collator, features):
        if len(features) == 4:  # `check_rows` reads 64
            seen.append([feature["instruction_en"] for feature in features])
        return stock(collator, features)

    with monkeypatch.context() as patch:
        patch.setattr(ParallelCollator, "__call__", call)
        yield seen


@pytest.mark.parametrize("method", ["cc", "vanilla"])
def test_translations_stand_together(options, monkeypatch, method):
    with recorded(monkeypatch) as seen:
        run(options("--translations_per_batch", "4", "--method", method))
    prompts = [set(batch) for batch in seen if any(batch)]
    assert len(prompts) >= 12
    assert all(len(prompt) == 1 for prompt in prompts), "four translations of one prompt fill a batch of four"


def test_the_same_order_after_a_resume(options, monkeypatch):
    """The interruption lies within the second epoch."""
    common = ("--translations_per_batch", "2", "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "4")
    with recorded(monkeypatch) as whole:
        ended = run(options(*common))
    checkpoint = str(ended.args.output_dir) + "/checkpoint-4"
    with recorded(monkeypatch) as rest:
        resumed = run(options(*common, "--resume_from_checkpoint", checkpoint))
    assert rest == whole[-5:]  # the steps 5 and 6, which end the epoch: four batches and one
    assert logged(resumed) == logged(ended)
    assert all(torch.equal(value, ended.model.state_dict()[name]) for name, value in resumed.model.state_dict().items())


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (("--translations_per_batch", "17"), r"translations_per_batch: expected 1 to 16, .* 4 × .* 4\), got 17"),
        (("--translations_per_batch", "0"), "translations_per_batch: expected 1 to 16, .* got 0"),
        (
            ("--translations_per_batch", "2", "--bucket_by_length", "true"),
            "translations_per_batch: expected none with bucket_by_length, which gives rows another order, got 2",
        ),
        (
            ("--translations_per_batch", "2", "--train_sampling_strategy", "sequential"),
            "translations_per_batch: expected none with train_sampling_strategy, .* got 2",
        ),
    ],
)
def test_orders_that_cannot_hold(options, tmp_path, further, message):
    with pytest.raises(SystemExit, match=f"train.sft: {message}"):
        main(options(*further))
    assert not (tmp_path / "out").exists(), "refused before anything is written"


def test_several_gpus_in_one_process(options, monkeypatch):
    """nn.DataParallel would cut the batches; the forward refuses them, too, but not before the first step."""
    monkeypatch.setattr(SftArguments, "n_gpu", 2)
    message = (
        "train.sft: {}: expected false with 2 GPUs in one process, where nn.DataParallel cuts .* use one process per"
    )
    with pytest.raises(
        SystemExit, match=message.format("share_pivots") + ".*or --share_pivots false --loss_only false"
    ):
        main(options())
    with pytest.raises(SystemExit, match=message.format("loss_only") + ".*or --loss_only false"):
        main(options("--share_pivots", "false"))
    arguments = SftArguments(use_cpu=True)
    check_training(arguments, "vanilla")
    arguments.share_pivots = arguments.loss_only = False
    check_training(arguments, "cc")


def test_processes_that_would_each_train_alone(options, monkeypatch):
    """As accelerate starts them on a machine without an accelerator, unless it is told to use the CPU."""
    arguments = SftArguments(use_cpu=True)
    monkeypatch.setattr(SftArguments, "world_size", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_training(arguments, "cc")  # a scheduler's variable without a launcher's
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="use_cpu: expected true for 2 processes on a machine without an accelerator"):
        check_training(arguments, "vanilla")
    monkeypatch.setattr(SftArguments, "world_size", 2)
    check_training(arguments, "cc")


def test_what_the_forward_refuses_reaches_the_user(options, monkeypatch):
    """A replica of nn.DataParallel gets the first rows of each column, and no window is read through it."""
    stock = CCTrainer.compute_loss

    def cut(trainer, model, inputs, **further):
        return stock(trainer, model, {name: value.chunk(2)[0] for name, value in inputs.items()}, **further)

    monkeypatch.setattr(CCTrainer, "_reads_windows", lambda trainer: False)
    monkeypatch.setattr(CCTrainer, "compute_loss", cut)
    with pytest.raises(SystemExit, match=r"train.sft: .*something cut the batch .* use one process per GPU .*torchrun"):
        main(options())
