"""The verbs and their flags as data: what `nrt --help` and `nrt VERB --help` print.

Nothing here imports torch or transformers: help answers at once.
"""

from dataclasses import dataclass

from native_reasoning.config.settings import GROUPS


@dataclass(frozen=True)
class Flag:
    """One flag of a verb's own. ``kind``: "value" takes one, "number" a whole number; "switch"
    takes none; "maybe" takes one or none, as truth values do."""

    name: str
    help: str
    metavar: str = "X"
    kind: str = "value"

    @property
    def key(self) -> str:
        """The name without hyphens, as Python has it."""
        return self.name[2:].replace("-", "_")


@dataclass(frozen=True)
class Verb:
    """A verb: the ``module`` that runs it, with ``:function`` where that is not ``run``, its flags,
    its positional argument (with "?" if it may be left out, "+" if there may be several), its
    groups of settings (where it has any, every field of NRTConfig is a flag of it), and examples
    that can be copied."""

    name: str
    summary: str
    text: str
    module: str
    flags: tuple[Flag, ...]
    examples: tuple[str, ...]
    positional: tuple[str, str, str] | None = None
    groups: tuple[str, ...] = ()
    common: bool = False


_JSON = Flag("--json", "print one JSON object on the last line of stdout", kind="switch")
_DATA = "file (.jsonl .json .csv .tsv .parquet), folder, or hub id owner/name:config; [test] after \
it picks a split"

#: Those of ``nrt eval --suite``; lm-eval's own names where it has them.
SUITE_FLAGS = (
    Flag("--suite", "benchmarks through lm-eval (nrt9: the nine of the paper)", "NAME"),
    Flag("--tasks", "some of the suite's, with commas between", "NAMES"),
    Flag("--thinking", "off on both (both)", "HOW"),
    Flag("--data-dir", "local files of the benchmarks (the hub's data)", "DIR"),
    Flag("--limit", "the first N questions of each benchmark", "N", "number"),
    Flag("--num-fewshot", "examples shown, where the prompt is not fixed", "N", "number"),
    Flag("--apply-chat-template", "ask in the model's chat template", kind="switch"),
    Flag("--gen-kwargs", "changes to generation, such as max_gen_toks=64", "K=V,..."),
    Flag("--batch-size", "questions at once (1)", "N", "number"),
    Flag("--run-code", "run code that the model wrote, in a sandbox (humaneval)", kind="switch"),
    Flag("--out", "each question's answers and traces, as JSON lines", "FILE"),
)

VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "demo",
            "train the embedded model offline, on a CPU, in a minute or two",
            "Trains a tiny embedded model on questions whose answers need a sum, without network "
            "or GPU,\nand prints the accuracy with and without thinking before and after.",
            "show:demo",
            flags=(
                Flag("--seed", "seed of data order and of every sampled token (0)", "N", "number"),
                Flag("--out", "a new folder for the runs (the first free runs/demo)", "DIR"),
                _JSON,
            ),
            examples=("nrt demo", "nrt demo --seed 1 --out runs/demo", "nrt demo --json"),
        ),
        Verb(
            "check",
            "look at a data file before training: shape, example, lengths, leaks",
            "Says what would be read from a data file and what would not, and warns of what goes "
            "wrong later.\nOnly the tokenizer and the configuration of --model are loaded, unless "
            "--sample asks it.",
            "check",
            positional=("DATA", "", _DATA),
            flags=(
                Flag("--model", "hub id or folder: lengths in tokens, boundaries", "M"),
                Flag("--eval-data", "held-out questions: looks for overlap", "F"),
                Flag(
                    "--sample",
                    "ask --model N questions (32 say something), --num-generations traces each: is "
                    "there anything to reinforce, and what does a step take",
                    "N",
                    "number",
                ),
                _JSON,
            ),
            groups=("data", "template", "traces"),
            examples=(
                "nrt check gsm8k.jsonl --answer-regex '####\\s*(.*)' --model Qwen/Qwen3-0.6B-Base",
                "nrt check svamp.jsonl --prompt-column Body+Question --eval-data test.jsonl",
                "nrt check qa.jsonl --model Qwen/Qwen3-0.6B-Base --sample 32",
            ),
        ),
        Verb(
            "train",
            "train a model on question-answer pairs",
            "Settings come from the recipe (a YAML file of `setting: value` lines), then from the "
            "flags.\nSIGTERM and Ctrl-C save at the end of the step and leave; --resume goes on.\n"
            "SIGUSR1 saves and trains on.",
            "train",
            positional=("recipe.yaml", "?", "settings, and model, data, eval_data"),
            flags=(
                Flag("--model", "hub id, model folder or run folder", "M"),
                Flag("--data", _DATA, "F"),
                Flag("--eval-data", "held-out questions, answered before and after", "F"),
                Flag("--out", "run folder (the first free runs/NAME)", "DIR"),
                Flag(
                    "--resume",
                    "go on with the run in --out from its newest checkpoint, or from CKPT",
                    "CKPT",
                    kind="maybe",
                ),
                Flag(
                    "--dry-run",
                    "make one step of full length, say what it took and what would happen; write "
                    "nothing",
                    kind="switch",
                ),
                _JSON,
            ),
            groups=tuple(GROUPS),
            examples=(
                "nrt train --model HuggingFaceTB/SmolLM2-135M --data qa.jsonl --eval-data "
                "test.jsonl",
                "nrt train recipes/laptop-smollm2-gsm8k.yaml --max-steps 50 --out runs/first",
                "nrt train --out runs/first --resume",
            ),
            common=True,
        ),
        Verb(
            "compare",
            "train several ways on the same data: is one better than SFT?",
            "Trains each preset with each seed on equal steps, questions and traces, one run after "
            "the other,\nand evaluates the untrained model (base) beside them. All settings of "
            "`nrt train` apply to every arm.\nThe same command goes on where it was stopped, and "
            "adds arms and seeds to those that are there.",
            "compare",
            positional=("recipe.yaml", "?", "settings, and model, data, eval_data, presets, seeds"),
            flags=(
                Flag("--model", "hub id, model folder or run folder", "M"),
                Flag("--data", _DATA, "F"),
                Flag("--eval-data", "held-out questions, by which the arms are compared", "F"),
                Flag(
                    "--presets",
                    "the arms, with commas between; settings of one arm alone stand behind colons "
                    "(verifree:learning_rate=1e-6)",
                    "A,B,...",
                ),
                Flag("--seeds", "runs of each arm, from --seed on (1)", "N", "number"),
                Flag("--out", "folder of the comparison (the first free runs/compare)", "DIR"),
                Flag(
                    "--dry-run",
                    "say which runs there would be and how long, by one measured step",
                    kind="switch",
                ),
                _JSON,
            ),
            groups=("traces",),
            examples=(
                "nrt compare --model HuggingFaceTB/SmolLM2-135M --data qa.jsonl --eval-data "
                "test.jsonl --presets sft,nrt-ws --seeds 3 --max-steps 100 --out runs/compare",
                "nrt compare --out runs/compare --presets permuted,verifree:learning_rate=1e-6",
                "nrt compare --out runs/compare",
            ),
            common=True,
        ),
        Verb(
            "eval",
            "accuracy with and without thinking on held-out questions",
            "Answers each question after a sampled trace and after none: those of --data, or of "
            "the benchmarks of\n--suite (docs/benchmarks.md). Of a run folder, its final/ or "
            "newest checkpoint is taken, with the run's\nown settings.",
            "evaluate",
            positional=("MODEL_OR_RUN", "", "hub id, model folder or run folder"),
            flags=(
                Flag("--data", _DATA, "F"),
                Flag("--show", "print N questions with trace and answer", "N", "number"),
                *SUITE_FLAGS,
                _JSON,
            ),
            groups=("traces", "template", "data", "model, evaluation, records"),
            examples=(
                "nrt eval runs/first --data test.jsonl",
                "nrt eval runs/first --data test.jsonl --show 3 --json",
                "nrt eval runs/first --suite nrt9 --limit 50 --out answers.jsonl",
            ),
        ),
        Verb(
            "chat",
            "talk to a model, its thinking apart from its answers",
            "Answers go to stdout, thinking (dimmed) to stderr. Without --question it asks for "
            "turns; /new forgets\nthem. Prompts, limits and sampling are those of training.",
            "chat",
            positional=("MODEL_OR_RUN", "", "hub id, model folder or run folder"),
            flags=(
                Flag("--question", "ask this and leave", "TEXT"),
                Flag("--reference", "say how likely this answer is, with and without", "TEXT"),
                Flag("--no-think", "answer at once, after the empty trace", kind="switch"),
                Flag("--seed", "seed of every sampled token (42)", "N", "number"),
                _JSON,
            ),
            groups=("traces", "template"),
            examples=(
                "nrt chat runs/first",
                "nrt chat runs/first --question 'What is 2 + 2?' --reference 4",
                "nrt chat runs/first --no-think --json",
            ),
        ),
        Verb(
            "report",
            "one page about a run, or about several beside each other",
            "Writes one self-contained HTML file: did thinking help, on which tokens, is it "
            "collapsing, and what\ndid it write. A folder of runs stands for all of them.",
            "show:report",
            positional=("RUN", "+", "run folders, or folders of runs"),
            flags=(
                Flag("--out", "the file (report.html in the folder of the run)", "FILE"),
                Flag(
                    "--watch",
                    "write the file again while the run trains; a browser loads it by itself",
                    kind="switch",
                ),
                _JSON,
            ),
            examples=(
                "nrt report runs/first",
                "nrt report runs/first runs/second --out compared.html",
                "nrt report runs/first --watch",
            ),
        ),
        Verb(
            "presets",
            "list the objectives, or explain one",
            "Every objective that --preset names: the papers as rows of one table.",
            "show:presets",
            positional=("NAME", "?", "explain this one"),
            flags=(_JSON,),
            examples=("nrt presets", "nrt presets nrt-ws", "nrt presets --json"),
        ),
    )
}
