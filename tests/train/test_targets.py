"""A teacher's distributions as targets: divergence and gradient, their place in a batch, loss, commands."""

import json
from functools import partial

import pytest
import torch
from divergence_reference import reference
from tiny_llama import SCRATCH
from torch.nn import functional as F

from cc_model import patch_model
from cc_model.data.collator import ParallelCollator
from cc_model.integrations.trainer import CCTrainer, PlainCollator
from cc_model.testing import tiny_model
from train import distil as command
from train.common.arguments import SftArguments
from train.common.models import new_tokenizer
from train.common.training import make_trainer
from train.distil import main as distil
from train.distillation.store import AnswerFile
from train.distillation.targets import COLUMN, TargetCollator, TargetTrainer, answer_targets, with_targets
from train.distillation.teacher import Answer, Targets
from train.sft import main as sft

ROWS = [
    {"instruction": "Hauptstadt?", "instruction_en": "Capital?", "output": "Paris"},
    {"instruction": "Wie heißt das Geld in Japan?", "instruction_en": "Money in Japan?", "output": "Yen und Sen"},
    {"instruction": "Hallo", "instruction_en": "", "output": "Tag"},
]


@pytest.mark.parametrize("patched", [True, False])
def test_targets_are_those_of_each_answer_alone(patched):
    torch.manual_seed(0)
    model = tiny_model("llama", vocab_size=300, initializer_range=0.3)
    model = (patch_model(model) if patched else model).eval()
    tokenizer = new_tokenizer(ROWS, 300)
    collator = ParallelCollator(tokenizer)
    found = answer_targets(model, ParallelCollator(tokenizer, packed=True, loss_only=True), ROWS, 4)
    for row, targets in zip(ROWS, found, strict=True):
        batch = collator([row])
        labels = batch.pop("labels")[0]
        with torch.no_grad():
            logits = model(**batch if patched else {k: batch[k] for k in ("input_ids", "attention_mask")}).logits[0]
        at = (labels != -100).nonzero()[:, 0]
        values, ids = logits[at - 1].log_softmax(-1).topk(4)
        assert targets.tokens == labels[at].tolist() == [*tokenizer(row["output"])["input_ids"][-len(at) + 1 :], 2]
        assert targets.top == ids.tolist()
        torch.testing.assert_close(torch.tensor(targets.log_probs), values, rtol=0, atol=1e-4)
    if patched:
        assert answer_targets(model, collator, ROWS, 4, pivot=False) != found
    assert len(answer_targets(model, collator, ROWS[:1], 1000)[0].top[0]) == 299
    with pytest.raises(ValueError, match="top: expected a positive number, got 0"):
        answer_targets(model, collator, ROWS, 0)


def test_only_answers_that_can_be_learned_have_targets():
    model = tiny_model("llama", vocab_size=300).eval()
    collator = ParallelCollator(new_tokenizer(ROWS, 300))
    answers = {2: Answer("Tag", -0.1), 0: Answer("", -0.1), 1: Answer("Yen und Sen", -0.2, ended=False)}
    found = with_targets(model, collator, ROWS, answers, 3)
    assert list(found) == [2, 0, 1]
    assert found[2].targets == answer_targets(model, collator, ROWS[2:], 3)[0]
    assert found[0] == answers[0]
    assert found[1] == answers[1]
    assert with_targets(model, collator, ROWS, {0: answers[0]}) == {0: answers[0]}


def made(text, tokenizer, k=3):
    """Targets of an answer, made up."""
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    torch.manual_seed(len(tokens))
    values, ids = torch.randn(len(tokens), 300).log_softmax(-1).topk(k)
    return Targets(tokens, ids.tolist(), values.tolist())


@pytest.mark.parametrize("side", ["right", "left"])
def test_where_targets_stand(side):
    tokenizer = new_tokenizer(ROWS, 300)
    tokenizer.padding_side = side
    targets = [None, made("Yen und Sen", tokenizer), made("Tag", tokenizer)]
    rows = [{**row, COLUMN: number} for number, row in enumerate(ROWS)]
    collate = TargetCollator(PlainCollator(ParallelCollator(tokenizer)), targets)
    batch = collate(rows[::-1])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "target_rows", "target_top", "target_log_probs"}
    learned = batch["labels"].flatten()[batch["target_rows"] + 1].tolist()
    assert learned == targets[2].tokens + targets[1].tokens
    assert batch["target_top"].tolist() == targets[2].top + targets[1].top
    assert torch.equal(batch["target_log_probs"], torch.tensor(targets[2].log_probs + targets[1].log_probs))
    assert set(collate(rows[:1])) == set(collate([ROWS[1]])) == {"input_ids", "attention_mask", "labels"}
    short = TargetCollator(PlainCollator(ParallelCollator(tokenizer, max_length=14)), targets)([rows[1]])
    count = len(short["target_rows"])
    assert 0 < count < len(targets[1].tokens)
    assert short["target_top"].tolist() == targets[1].top[:count]
    cut = targets[1]._replace(tokens=targets[1].tokens[:2], top=targets[1].top[:2], log_probs=targets[1].log_probs[:2])
    assert len(TargetCollator(PlainCollator(ParallelCollator(tokenizer)), [None, cut])([rows[1]])["target_rows"]) == 2
    wrong = TargetCollator(PlainCollator(ParallelCollator(tokenizer)), [targets[1]])
    with pytest.raises(
        ValueError, match=r"targets: expected an answer of the tokens \[.*, the student's tokenizer gives"
    ):
        wrong([{**ROWS[2], COLUMN: 0}])


def arguments(folder, **more):
    common = {"output_dir": str(folder), "per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}
    common |= {"max_steps": 1, "save_strategy": "no", "use_cpu": True, "logging_steps": 1, "learning_rate": 1e-2}
    return SftArguments(**{**common, **more})


def weights_after(folder, kind=CCTrainer, rows=ROWS, **more):
    """A student after some steps of SGD, with its losses."""
    torch.manual_seed(0)
    model = tiny_model("llama", vocab_size=300, initializer_range=0.1)
    collator = ParallelCollator(new_tokenizer(ROWS, 300))
    options = arguments(folder, optim="sgd", lr_scheduler_type="constant", warmup_steps=0, **more)
    trainer = make_trainer(model, collator, [dict(row) for row in rows], options, title=None, kind=kind)
    trainer.train()
    return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("batch", [3, 1])
def test_a_step_is_that_of_the_formula(tmp_path, weight, batch):
    """Loss and gradient (by a step of SGD), also accumulated over rows, some of which have targets."""
    tokenizer = new_tokenizer(ROWS, 300)
    targets = [made(ROWS[0]["output"], tokenizer), None, made(ROWS[2]["output"], tokenizer)]
    kind = partial(TargetTrainer, targets=targets, text_weight=weight)
    split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 3 // batch, "max_grad_norm": 0.0}
    model, losses = weights_after(tmp_path, kind, **split)
    torch.manual_seed(0)
    plain = tiny_model("llama", vocab_size=300, initializer_range=0.1)
    total, count = 0.0, 0
    for row, found in zip(ROWS, targets):
        rows = PlainCollator(ParallelCollator(tokenizer))([row])
        labels = rows.pop("labels")[0, 1:]
        logits = plain(**rows).logits[0, :-1][labels != -100]
        text = F.cross_entropy(logits, labels[labels != -100], reduction="sum")
        count += len(logits)
        if found is None:
            total = total + text
        else:
            other = reference(logits, torch.tensor(found.top), torch.tensor(found.log_probs)).sum()
            total = total + weight * text + (1 - weight) * other
    loss = total / count
    loss.backward()
    assert losses[0] == pytest.approx(loss.item(), abs=2e-4)
    for (name, stepped), start in zip(model.named_parameters(), plain.parameters()):
        torch.testing.assert_close(
            stepped, start - 1e-2 * start.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    if weight == 1:
        assert losses == pytest.approx(weights_after(tmp_path, **split)[1], abs=1e-5)


def test_a_trainer_refuses_what_it_cannot_learn(tmp_path, monkeypatch):
    collator = ParallelCollator(new_tokenizer(ROWS, 300))
    model = tiny_model("llama", vocab_size=300)

    def make(model=model, collator=collator, targets=(None, None, None), **more):
        options = arguments(tmp_path)
        return make_trainer(model, collator, ROWS, options, kind=partial(TargetTrainer, targets=targets, **more))

    with pytest.raises(ValueError, match="targets: expected one entry for each of 3 rows, got 1"):
        make(targets=[None])
    with pytest.raises(ValueError, match=r"text_weight: expected a share from 0 to 1, got 1\.5"):
        make(text_weight=1.5)
    with pytest.raises(ValueError, match=r"targets: expected a plain student .* got another training"):
        make(collator=ParallelCollator(collator.tokenizer, packed=True))
    with pytest.raises(ValueError, match=r"targets: expected a plain student .* got another training"):
        make(model=patch_model(tiny_model("llama", vocab_size=300)))
    with pytest.raises(ValueError, match="the student's tokenizer gives"):
        make(targets=[None, made("Paris", collator.tokenizer), None])
    trainer = make(targets=[made("Paris", collator.tokenizer), None, None])
    batch = trainer.data_collator([trainer.train_dataset[0]])
    output = model(**{name: batch[name] for name in ("input_ids", "labels")})
    output.logits = None
    monkeypatch.setattr(CCTrainer, "compute_loss", lambda *args, **options: (output.loss, output))
    with pytest.raises(ValueError, match=r"logits: expected those of the model .* got none: leave fused losses out"):
        trainer.compute_loss(model, batch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CC model in `cc`, prompts, and labelled rows for a student."""
    root = tmp_path_factory.mktemp("runs")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (root / "prompts.jsonl").write_text("".join(json.dumps({**row, "output": "no"}) + "\n" for row in ROWS[:2]))
    common = ["--use_cpu", "--max_steps", "2", "--per_device_train_batch_size", "4"]
    common += ["--gradient_accumulation_steps", "1", "--dataset", str(root / "rows.jsonl")]
    sft([*common, "--scratch", json.dumps(SCRATCH), "--scratch_vocab_size", "300", "--output_dir", str(root / "cc")])
    (root / "common").write_text(json.dumps(common))
    return root


def ask(folder, out, *more):
    given = ["--teacher", str(folder / "cc"), "--prompts", str(folder / "prompts.jsonl"), "--output_dir", str(out)]
    distil([*given, "--device", "cpu", "--answer_batch_size", "1", "--max_new_tokens", "3", *more])


def test_distil_keeps_distributions_and_a_student_learns_them(folder, tmp_path, monkeypatch):
    """An untrained teacher does not end: as if it had."""

    def ended(*args, **options):
        for number, part in enumerate(command_write(*args, **options)):
            yield {place: Answer(f"Geld {number}", -1.0 - number) for place in part}

    command_write = command.write_answers
    monkeypatch.setattr(command, "write_answers", ended)
    soft = ["--targets", "distribution", "--top", "5"]
    ask(folder, tmp_path, "--answers_only", *soft)
    text = (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [len(line["targets"]["top"][0]) for line in lines] == [5, 5]
    (tmp_path / "answers.jsonl").write_text(text.splitlines()[0] + "\n", encoding="utf-8")
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    kept = AnswerFile(tmp_path, rows, {"top": 5})
    assert kept.answers[lines[0]["row"]].targets == Targets(**lines[0]["targets"])
    with pytest.raises(SystemExit, match=r"top: the answers in .* were written with 5, now it is 6"):
        ask(folder, tmp_path, "--answers_only", "--targets", "distribution", "--top", "6")
    seen = []

    class Watched(TargetTrainer):
        def __init__(self, **options):
            seen.append(
                (options["targets"], options["text_weight"], [row["output"] for row in options["train_dataset"]])
            )
            super().__init__(**options)

    monkeypatch.setattr(command, "TargetTrainer", Watched)
    student = [*json.loads((folder / "common").read_text()), "--model", str(folder / "cc")]
    ask(folder, tmp_path, *soft, *student, "--text_weight", "0.25")
    [(targets, weight, outputs)] = seen
    assert weight == 0.25
    assert outputs == [*(row["output"] for row in ROWS), "Geld 0", "Geld 0"]
    assert targets[:3] == [None] * 3
    assert all(len(found.tokens) == len(found.top) for found in targets[3:])
    assert (tmp_path / "model.safetensors").is_file()
    ask(folder, tmp_path, *soft, *student, "--keep", "0.5", "--overwrite")
    targets, weight, outputs = seen[1]
    assert (len(targets), weight, outputs[3:]) == (4, 0.5, ["Geld 0"])
    assert targets[3] is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top", "0"], "top: expected a positive number, got 0"),
        (["--text_weight", "1.5"], "text_weight: expected a share from 0 to 1, got 1.5"),
        (["--method", "cc"], "targets: expected text with --method cc, got distribution"),
        (["--packed", "true"], "targets: expected text with --packed true, got distribution"),
    ],
)
def test_distil_refuses(folder, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        ask(folder, tmp_path, "--targets", "distribution", "--dataset", str(folder / "rows.jsonl"), *arguments)
    assert not (tmp_path / "answers.jsonl").exists()
