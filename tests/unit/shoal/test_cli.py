"""The `shoal` command, called as a function and as a process, against a fake server."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from shoal import cli
from shoal.commands import classify as classify_command
from shoal.commands import external
from shoal.commands.output import excerpt, printable, to_json
from shoal_fake_server import FakeServer


@pytest.fixture
def shoal(server: FakeServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in this process; code, output and errors."""
    monkeypatch.setenv("SHOAL_ADDRESS", server.address)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


HEAR_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def process(server: FakeServer, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command, which hears Ctrl-C even where the tests run in a background that ignores it.

    A process of its own restores the signal and then becomes the command: a `preexec_fn` would run Python between
    fork and exec, and beside gRPC's threads that child sometimes dies or hangs.
    """
    return subprocess.Popen(
        [sys.executable, "-c", HEAR_CTRL_C, sys.executable, "-m", "shoal.cli", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SHOAL_ADDRESS": server.address},
        **options,
    )


def as_json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# --- classify ---------------------------------------------------------------------------------------------------------


def test_texts_become_a_table(shoal: Any) -> None:
    code, out, err = shoal("classify", "demo@3", "short", "a much longer text")
    assert (code, err) == (0, "")
    assert "demo@3" in out
    assert [line.split()[-2:] for line in out.splitlines() if "0.5" in line] == [
        ["short", "0.5000"],
        ["long", "0.5000"],
    ]


def test_texts_become_one_json_object(shoal: Any, server: FakeServer) -> None:
    code, out, _ = shoal("classify", "demo@stable", "short", "--json", "--scores", "logits", "--overflow", "windows")
    reply = json.loads(out)
    assert code == 0
    assert reply["results"][0]["labels"] == ["short", "long", "pair", "tokens"]
    assert reply["served_by"] == {"model": "demo", "version": 7}
    request = server.record.calls[0].request
    assert (request.model.label, request.options.scores, request.options.overflow) == ("stable", 2, 4)


def test_a_file_is_streamed_in_order_over_several_streams(
    shoal: Any, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classify_command, "LINES_PER_STREAM", 40)
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {number}\r\n" for number in range(100)) + "the last has no end")
    code, out, err = shoal("classify", "demo", "--file", path, "--json")
    lines = as_json_lines(out)
    assert (code, err) == (0, "")
    assert [line["index"] for line in lines] == list(range(101))
    assert [line["labels"][0] for line in lines[-2:]] == ["short", "long"]
    assert lines[0] | {"labels": [], "scores": []} == {
        "index": 0,
        "labels": [],
        "scores": [],
        "spans": [],
        "num_input_tokens": len("line 0") + 2,
        "num_dropped_tokens": 0,
        "num_windows": 1,
        "model": "demo",
        "version": 7,
    }
    assert server.record.attempts["StreamClassify"] == 3


def test_failed_lines_keep_their_place_and_the_code_tells(shoal: Any, tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("one\n\nthree\n")
    code, out, err = shoal("classify", "demo", "--file", path)
    assert code == 1
    assert [line.split("\t")[0] for line in out.splitlines()] == ["short", "error", "short"]
    assert [line.split("\t")[-1] for line in out.splitlines()] == ["one", "", "three"]
    assert err == "shoal: 1 of 3 lines failed; the first: line 2: input.text: is empty\n"
    _, out, _ = shoal("classify", "demo", "--file", path, "--json")
    assert as_json_lines(out)[1]["error"] == {
        "code": "INVALID_ARGUMENT",
        "reason": "INVALID_REQUEST",
        "message": "input.text: is empty",
        "violations": [{"field": "input.text", "description": "is empty"}],
    }


def test_pairs_and_json_lines(shoal: Any, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("first\tsecond\n")
    assert shoal("classify", "demo", "--file", path, "--lines", "pairs")[1].startswith("pair\t")
    path.write_text('"x"\n{"text": "x"}\n{"first": "a", "second": "b"}\n{"token_ids": [1, 2]}\n')
    _, out, _ = shoal("classify", "demo", "--file", path, "--lines", "json", "--top-k", "1")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["short", "short", "pair", "tokens"]


def test_spans_become_a_table_of_what_they_cover(shoal: Any, server: FakeServer) -> None:
    code, out, err = shoal("classify", "ner", "we met Anna and Bo", "nobody", "--aggregation", "simple")
    rows = [line.split() for line in out.splitlines() if "0.75" in line]
    assert (code, err) == (0, "")
    assert rows == [
        ["we", "met", "Anna", "and", "Bo", "Anna", "PER", "0.7500", "7-11"],
        ["Bo", "PER", "0.7500", "16-18"],
    ]
    assert server.record.calls[0].request.options.aggregation == 2


def test_spans_of_lines_stand_before_the_text(shoal: Any, server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text('"Zoë met Anna"\n"nobody"\n{"token_ids": [5, 6]}\n')
    arguments = ("classify", "ner", "--file", path, "--lines", "json", "--ignore-labels", "O,MISC")
    code, out, _ = shoal(*arguments)
    assert code == 0
    assert out.splitlines() == [
        'PER\t0.7500\tZoë\tPER\t0.7500\tAnna\t"Zoë met Anna"',
        '"nobody"',
        'PER\t0.7500\t6\t{"token_ids": [5, 6]}',
    ]
    assert list(server.record.calls[0].request.start.options.ignore_labels.names) == ["O", "MISC"]
    first = as_json_lines(shoal(*arguments, "--json")[1])[0]
    assert first["spans"][1] == {"label": "PER", "score": 0.75, "start": 8, "end": 12}


def test_window_pooling_and_no_label_left_out_travel(shoal: Any, server: FakeServer) -> None:
    shoal("classify", "demo", "x", "--overflow", "windows", "--pooling", "max", "--ignore-labels", "")
    options = server.record.calls[0].request.options
    assert options.pooling == 2
    assert options.HasField("ignore_labels")
    assert not options.ignore_labels.names


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"good\nno tab", "pairs", "line 1: has no tab"),
        (b'"x"\n{"token_ids": [true]}', "json", "line 2: is not a string"),
        (b'"x"\n{', "json", "line 2: is not JSON"),
        (b"ok\n\xff\xfe", "text", "line 2: is not UTF-8"),
        (b"x" * (4 * 2**20 + 200_000), "text", "line 1: has more than 4,194,304 bytes"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    shoal: Any, tmp_path: Path, content: bytes, kind: str, message: str
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(content)
    code, _, err = shoal("classify", "demo", "--file", path, "--lines", kind)
    assert code == 2
    assert err.startswith(f"shoal: {message}")


def test_a_pipe_is_answered_line_by_line_while_it_is_open(server: FakeServer) -> None:
    with process(server, "classify", "prompt", "--json", bufsize=0) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for number in range(3):
            running.stdin.write(b"a line\n")
            assert json.loads(running.stdout.readline())["index"] == number
        running.stdin.close()
        assert running.wait(20) == 0


def test_a_large_pipe_needs_little_memory(server: FakeServer) -> None:
    """60 MB go through a process whose peak stays within 30 MB of that for five lines.

    At most 128 + 64 lines of 60 kB, 11.5 MB, are held in the client, each of them twice while it is encoded.
    """
    script = (
        "import re, sys; from shoal.cli import main; code = main(['classify', 'prompt', '--top-k', '1']);"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr); sys.exit(code)"
    )
    line = b"x" * 60_000 + b"\n"
    peaks = []
    for count in (5, 1000):
        ended = subprocess.run(
            [sys.executable, "-c", script],
            input=line * count,
            capture_output=True,
            env={**os.environ, "SHOAL_ADDRESS": server.address},
            timeout=120,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count(b"\n") == count
        peaks.append(int(ended.stderr.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 30, peaks


def test_a_reader_that_goes_away_is_no_error(server: FakeServer) -> None:
    command = f"yes some text | {sys.executable} -m shoal.cli classify prompt | head -n 3; echo ${{PIPESTATUS[1]}}"
    ended = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "SHOAL_ADDRESS": server.address},
        timeout=60,
    )
    assert ended.stdout.splitlines()[3] == "141"
    assert ended.stderr == ""
    assert server.record.cancelled.wait(5)


@pytest.mark.parametrize("arguments", [("generate", "endless", "x"), ("classify", "silent")])
def test_ctrl_c_ends_quickly_and_quietly(server: FakeServer, arguments: tuple[str, ...]) -> None:
    running = process(server, *arguments)
    assert running.stdin is not None
    running.stdin.write(b"a line\n")
    running.stdin.flush()
    server.record.wait_for_call()
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    assert running.wait(10) == 130
    assert running.stderr is not None
    assert running.stderr.read() == b""
    assert server.record.cancelled.wait(5)
    for stream in (running.stdin, running.stdout, running.stderr):
        stream.close()  # type: ignore[union-attr]


# --- generate ---------------------------------------------------------------------------------------------------------


def test_a_prompt_is_streamed(shoal: Any, server: FakeServer) -> None:
    code, out, err = shoal(
        "generate", "demo", "once", "--temperature", "0", "--stop", "END", "--stop", "FIN", "--seed", 3
    )
    assert (code, out, err) == (0, "once goes on \n", "")
    sent = server.record.calls[0].request.generation
    assert list(sent.stop.strings) == ["END", "FIN"]
    assert sent.sampling.HasField("temperature")
    assert sent.sampling.seed == 3


def test_a_chat_has_roles(shoal: Any, server: FakeServer) -> None:
    assert shoal("generate", "demo", "hi", "--system", "be brief")[1] == "1:be brief 2:hi \n"
    assert shoal("generate", "demo", "hi", "--chat")[1] == "2:hi \n"


def test_generation_as_json(shoal: Any) -> None:
    _, out, _ = shoal("generate", "demo", "once", "--json", "--num-completions", "2")
    reply = json.loads(out)
    assert [completion["text"] for completion in reply["completions"]] == ["once goes on 0", "once goes on 1"]
    assert reply["summary"]["num_output_tokens"] == 4
    _, out, _ = shoal("generate", "demo", "once", "--json", "--stream")
    lines = as_json_lines(out)
    assert "".join(line["delta"]["text"] for line in lines[:-1]) == "once goes on "
    assert lines[-1]["summary"]["completions"][0]["finish_reason"] == "stop_string"


def test_several_completions_are_printed_one_after_the_other(shoal: Any) -> None:
    _, out, _ = shoal("generate", "demo", "once", "--num-completions", "2")
    assert out.splitlines() == [
        "--- 1 of 2: stop_string",
        "once goes on 0",
        "--- 2 of 2: stop_string",
        "once goes on 1",
    ]


def test_options_may_stand_anywhere(shoal: Any, server: FakeServer) -> None:
    assert shoal("generate", "demo", "--chat", "hi there")[1] == "2:hi there \n"
    assert shoal("generate", "--chat", "demo", "--temperature", "0", "hi", "--timeout", "5")[1] == "2:hi \n"
    assert len(json.loads(shoal("classify", "demo", "--json", "one", "--top-k", "2", "two")[1])["results"]) == 2
    assert shoal("generate", "demo", "--chat", "--", "-x")[1] == "2:-x \n"
    code, _, err = shoal("generate", "demo", "one", "two")
    assert (code, "unrecognized arguments: two" in err) == (2, True)


def test_a_prompt_comes_from_a_pipe(server: FakeServer) -> None:
    out, _ = process(server, "generate", "demo").communicate(b"once\nupon\n", timeout=20)
    assert out == b"once upon goes on \n"


# --- train ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text("text,label\nx,y\n")
    path = tmp_path / "spec.yaml"
    path.write_text(
        "name: bbc\nbase: {model: minilm}\nobjective: sequence_classification\nlora:\n"
        "data: {train: rows.csv, validation: /on/the/server.csv}\nlearning_rate: 2e-5\ncheckpoint_interval: 5m\n"
    )
    return path


def test_train_uploads_submits_and_follows(shoal: Any, server: FakeServer, spec: Path) -> None:
    code, out, err = shoal("train", spec)
    assert (code, err) == (0, "job job-1\n")
    sent = server.record.of("CreateTrainingJob")[0].request
    assert sent.spec.data.train == next(iter(server.record.datasets))
    assert sent.spec.data.validation == "/on/the/server.csv"
    assert (sent.spec.learning_rate, sent.spec.checkpoint_interval.seconds) == (2e-5, 300)
    assert sent.spec.WhichOneof("method") == "lora"
    assert "step 5/10  epoch 0.50  loss 0.7500  lr 2.00e-05  9.0 s left" in out
    assert "warning: 12 % of the rows were cut" in out
    assert "final evaluation  accuracy 0.875" in out
    assert "bbc@4" in out.splitlines()[-2]


def test_train_as_json_lines(shoal: Any, spec: Path) -> None:
    _, out, _ = shoal("train", spec, "--json")
    lines = as_json_lines(out)
    assert [line["kind"] for line in lines] == [
        "state_changed",
        "job_progress",
        "job_warning",
        "checkpoint_saved",
        "evaluation",
        "version_published",
        "state_changed",
        "job",
    ]
    assert lines[0]["time"] == "2023-11-14T22:13:21Z"
    assert lines[-1]["job"]["published_version"] == 4


def test_a_dry_run_shows_the_resolved_spec(shoal: Any, server: FakeServer, spec: Path) -> None:
    code, out, _ = shoal("train", spec, "--dry-run")
    assert code == 0
    assert server.record.of("CreateTrainingJob")[0].request.validate_only
    yaml = importlib.import_module("yaml")
    resolved = yaml.safe_load(out)
    assert (resolved["epochs"], resolved["base"], resolved["checkpoint_interval"]) == (5.0, {"model": "minilm"}, "300s")
    assert resolved["lora"] == {}


def test_a_mistake_in_a_spec_is_found_before_anything_is_sent(shoal: Any, server: FakeServer, spec: Path) -> None:
    spec.write_text(spec.read_text() + "epoch: 3\nbatch_size: many\n")
    code, _, err = shoal("train", spec)
    assert code == 2
    assert "epoch: is no field; did you mean epochs?" in err
    assert "batch_size: is 'many'; must be a number" in err
    assert server.record.calls == []


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "is not YAML"), ("- 1", "holds no mapping"), ("", "holds no mapping")]
)
def test_a_file_that_is_no_spec(shoal: Any, spec: Path, content: str, message: str) -> None:
    spec.write_text(content)
    code, _, err = shoal("train", spec)
    assert (code, message in err) == (2, True)
    assert shoal("train", spec.with_name("absent.yaml"))[0] == 3


def test_without_pyyaml_json_works_and_yaml_says_what_to_install(
    shoal: Any, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    code, _, err = shoal("train", spec)
    assert (code, "pip install 'shoal[training]' or pip install pyyaml" in err) == (2, True)
    spec.write_text(json.dumps({"name": "bbc", "data": {"train": "rows.csv"}}))
    assert shoal("train", spec, "--detach")[:2] == (0, "job-1\n")


@pytest.mark.parametrize(
    ("job_id", "code", "message"),
    [
        ("job-1", 0, ""),
        ("job-failed", 1, "shoal: job job-failed is failed: bad_data: line 17 has no label\n"),
        ("job-cancelled", 6, "shoal: job job-cancelled was cancelled\n"),
    ],
)
def test_the_exit_code_tells_how_a_job_ended(shoal: Any, job_id: str, code: int, message: str) -> None:
    found, _, err = shoal("jobs", "watch", job_id)
    assert (found, err) == (code, message)


def test_ctrl_c_detaches_from_a_job(server: FakeServer) -> None:
    running = process(server, "jobs", "watch", "job-open")
    server.record.wait_for_call()
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=10)
    assert running.returncode == 130
    assert (
        b"Detached; the job goes on. Follow it: shoal jobs watch job-open   Stop it: shoal jobs cancel job-open" in err
    )


# --- jobs, models, datasets -------------------------------------------------------------------------------------------


def test_jobs_are_tables_and_json(shoal: Any, server: FakeServer) -> None:
    code, out, _ = shoal("jobs", "list", "--limit", "3")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if "job-" in line] == ["job-0", "job-1", "job-2"]
    assert [job["id"] for job in json.loads(shoal("jobs", "list", "--json")[1])["jobs"]] == [
        f"job-{n}" for n in range(5)
    ]
    assert json.loads(shoal("jobs", "show", "job-1", "--json")[1])["spec"]["checkpoint_interval"] == "300s"
    assert "accuracy 0.875" in shoal("jobs", "show", "job-1")[1]
    assert shoal("jobs", "cancel", "job-1")[1] == "job-cancelled is cancelled\n"
    assert shoal("jobs", "delete", "job-1")[1] == "job-1 is deleted\n"
    assert shoal("jobs", "show", "nobody")[::2] == (3, "shoal: no job 'nobody'\n")


def test_models_are_tables_and_json(shoal: Any, server: FakeServer) -> None:
    assert "2 live, 1 rejected" in shoal("models", "list")[1]
    assert json.loads(shoal("--address", server.address, "models", "list", "--json")[1])["models"][1]["name"] == "other"
    out = shoal("models", "show", "demo")[1]
    assert "85.8 MiB" in out
    assert "version 1 was refused: golden outputs differ" in out
    assert shoal("models", "load", "demo@5")[1] == "demo@5 is live\n"
    assert shoal("models", "unload", "demo")[1] == "demo: draining 2, 1\n"
    assert shoal("models", "delete", "demo@1")[1] == "demo@1 is deleted\n"
    assert shoal("models", "delete", "demo@2")[::2] == (1, "shoal: version 2 is live\n")
    assert (
        shoal("models", "label", "demo@1", "stable", "--expect", "2")[1] == "demo: label stable points at version 1\n"
    )
    assert shoal("models", "label", "demo", "stable", "--remove")[1] == "demo: label stable is removed\n"
    assert shoal("models", "label", "demo", "stable")[0] == 2
    assert shoal("models", "delete", "demo")[0] == 2
    assert shoal("models", "load", "demo@stable")[0] == 2


def test_datasets_have_names(shoal: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.data"
    path.write_text("text,label\nx,y\n")
    assert shoal("datasets", "upload", path)[0] == 2
    name = shoal("datasets", "upload", path, "--format", "csv")[1].strip()
    assert name.startswith("dataset://")
    assert "15 B" in shoal("datasets", "show", name)[1]
    assert json.loads(shoal("datasets", "show", name, "--json")[1])["size_bytes"] == 15
    assert shoal("datasets", "delete", name)[0] == 0
    assert shoal("datasets", "show", name)[0] == 3


# --- errors, options, other commands ----------------------------------------------------------------------------------


def test_errors_are_one_line_and_a_code(shoal: Any, tmp_path: Path) -> None:
    assert shoal("classify", "missing", "x")[::2] == (3, "shoal: no model 'missing'; there is: demo\n")
    code, _, err = shoal("generate", "flaky", "x")
    assert (code, err) == (4, "shoal: version is loading\n  try again in 0.03 s\n")
    code, _, err = shoal("generate", "hurt", "x")
    assert code == 1
    assert err.startswith("shoal: a fault\n  the server's log knows this request as ")
    assert shoal("classify", "demo", "")[::2] == (2, "shoal: inputs[0].text: is empty\n")
    assert shoal("classify", "silent", "x", "--timeout", "0.2")[0] == 4
    code, _, err = shoal("--address", "127.0.0.1:1", "models", "list")
    assert code == 4
    assert err.startswith("shoal: no server can be reached at 127.0.0.1:1: ")
    assert err.count("\n") == 1
    assert shoal("classify", "demo", "--file", tmp_path / "absent")[0] == 3
    assert shoal("--token-file", tmp_path / "absent", "models", "list")[0] == 2


@pytest.mark.parametrize(
    "arguments", [(), ("fly",), ("classify",), ("classify", "@3", "x"), ("jobs",), ("models", "show")]
)
def test_a_wrong_command_line_is_usage(shoal: Any, arguments: tuple[str, ...]) -> None:
    code, out, err = shoal(*arguments)
    assert (code, out) == (2, "")
    assert "usage: shoal" in err


def test_help_documents_the_exit_codes(shoal: Any) -> None:
    code, out, _ = shoal("--help")
    assert code == 0
    assert all(word in out for word in ("serve", "config", "import", "classify", "130"))


def test_the_token_is_sent_and_never_shown(shoal: Any, server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("very-secret\n")
    for command in (("models", "show", "demo"), ("classify", "missing", "x"), ("classify", "demo", "x", "--json")):
        _, out, err = shoal("--token-file", path, *command)
        assert "very-secret" not in out + err
    assert {call.metadata["authorization"] for call in server.record.calls} == {"Bearer very-secret"}


class FakeEntry:
    """An entry point of another package."""

    value = "other.commands:main"

    def __init__(self, error: ModuleNotFoundError | None = None) -> None:
        self.error = error
        self.seen: list[list[str]] = []

    def load(self) -> Any:
        if self.error is not None:
            raise self.error
        return lambda argv: self.seen.append(argv) or 17


def test_other_packages_bring_commands(shoal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {name: FakeEntry() for name in ("serve", "train-local", "extra")}
    monkeypatch.setattr(external, "_entries", lambda: entries)
    assert shoal("serve", "--config", "x.yaml", "--help")[0] == 17
    assert shoal("train", "spec.yaml", "--local", "--repository", "models")[0] == 17
    assert shoal("extra")[0] == 17
    assert entries["serve"].seen == [["--config", "x.yaml", "--help"]]
    assert entries["train-local"].seen == [["spec.yaml", "--repository", "models"]]
    assert shoal("--address", "a:1", "serve")[0] == 2


def test_an_absent_extra_is_named(shoal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = FakeEntry(ModuleNotFoundError("No module named 'msgspec'", name="msgspec"))
    monkeypatch.setattr(external, "_entries", lambda: {"serve": absent})
    code, _, err = shoal("serve")
    assert code == 2
    assert err == (
        "shoal: `shoal serve` is not part of the bare client (msgspec is not installed); "
        "install it: pip install 'shoal[server]'\n"
    )
    code, _, err = shoal("train", "spec.yaml", "--local")
    assert (code, "`shoal train --local`" in err, "pip install 'shoal[training]'" in err) == (2, True, True)


def test_text_cannot_steer_a_terminal() -> None:
    assert printable("a\x1b[31mb\x07c\nd\te\x9b") == "a\ufffd[31mb\ufffdc\nd\te\ufffd"
    assert excerpt("many   words\n" * 30).endswith("…")
    assert len(excerpt("x" * 500)) == 60


def test_numbers_that_json_cannot_hold_become_null() -> None:
    assert to_json({"loss": float("nan"), "all": (float("inf"), 1.5)}) == {"loss": None, "all": [None, 1.5]}
