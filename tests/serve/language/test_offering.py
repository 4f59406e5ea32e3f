"""Where a language model comes from: one file, or a folder as Optimum exports it."""

import json
import shutil
import subprocess
import sys

import onnx
import pytest

from airserve.contract import Endpoint
from airserve.model import Function, ModelError
from airserve.serve.offering import names, offers
from airserve.serve.served import Served
from airserve.serve.tokenizing import described


@pytest.fixture
def folder(reference, tmp_path):
    """The model of one file, its metadata in files beside it."""
    top = tmp_path / "models" / "gpt"
    top.mkdir(parents=True)
    model = onnx.load(reference.path)
    told = {one.key: one.value for one in model.metadata_props}
    del model.metadata_props[:]
    onnx.save(model, top / "model.onnx")
    (top / "tokenizer.json").write_text(told["tokenizer"], encoding="utf-8")
    config = {"eos_token": {"content": "<|end|>"}, "bos_token": None, "chat_template": told["chat_template"]}
    (top / "tokenizer_config.json").write_text(json.dumps(config))
    (top / "config.json").write_text(json.dumps({"n_positions": 192, "eos_token_id": [1, 7]}))
    return top


def test_a_folder_of_optimum_is_a_model_and_so_is_each_in_a_folder_of_them(folder, reference):
    for source in (folder, folder.parent):
        assert names(str(source)) == ["gpt"]
        (offer,) = offers(str(source))
        assert offer.endpoint.functions[0].path == str(folder / "model.onnx")
    shutil.copytree(folder, folder.parent / "other")
    assert names(str(folder.parent)) == ["gpt", "other"]
    served = Served(offer.endpoint)
    whole = Served(Endpoint("gpt", (Function("gpt", "model", str(reference.path)),)))
    messages = [{"role": "user", "content": "How warm?"}]
    assert served.language.context == whole.language.context == 192
    assert served.language.tokenizer.chat(messages) == whole.language.tokenizer.chat(messages)
    assert served.language.tokenizer.ends == {1, 7}
    assert whole.language.tokenizer.ends == {1}


def test_files_that_are_damaged_are_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is no JSON"):
        described({}, folder)
    (folder / "config.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert described({}, folder)["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tokenizer_config.json", b"[1]", r"tokenizer_config\.json is no JSON object"),
        ("tokenizer.json", b"\xff", r"tokenizer\.json is no text in UTF-8"),
        ("config.json", b'{"eos_token_id": ["end"]}', "says eos_token_id \"\\['end'\\]\", which is no token's number"),
        ("config.json", b'{"eos_token_id": {"end": 1}}', "no token's number"),
        ("config.json", b'{"eos_token_id": Infinity}', "no token's number"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat template of gpt is no text"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default", "template": {}}, 5]}', None),
    ],
)
def test_files_that_say_what_they_may_not_are_refused_in_a_sentence(folder, file, content, says):
    (folder / file).write_bytes(content)
    (offer,) = offers(str(folder))
    if says is None:
        assert Served(offer.endpoint).language is not None
    else:
        with pytest.raises(ModelError, match=says):
            Served(offer.endpoint)


def test_a_template_reaches_nothing(folder):
    """A stranger's template: no way out of the sandbox, and what it does wrong is the sentence of an error."""
    from airserve.serve.served import BadInput
    from airserve.serve.tokenizing import Template

    for text in (
        "{{ messages.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.popen('id') }}",
        "{{ messages.append(1) }}", "{{ 1 // 0 }}", "{% for i in range(10**9) %}{% endfor %}", "{{ messages[9].role }}",
        "{{ raise_exception('only users') }}",
    ):  # fmt: skip
        with pytest.raises(BadInput, match="the model's chat template refuses these messages"):
            Template("m", text, {}).render([{"role": "user", "content": "x"}])


def test_a_service_without_language_loads_nothing_of_it(graphs):
    code = (
        "import sys\nfrom airserve.contract import Endpoint\nfrom airserve.model import Function\n"
        "import airserve.serve.working, airserve.serve.protocols.oip\nfrom airserve.serve.served import Served\n"
        f"Served(Endpoint('w', (Function('w', 'model', {str(graphs['whole'])!r}),)))\n"
        "mine = ('tokenizers', 'jinja2', 'llama_cpp', 'sqlite3', 'airserve.serve.generating', 'torch', 'numba')\n"
        "print([name for name in mine if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_language_model_is_served_without_torch(reference):
    code = (
        "import sys\nfrom airserve.contract import Endpoint\nfrom airserve.model import Function\n"
        "import airserve.serve.protocols.openai, airserve.serve.protocols.camara\n"
        "from airserve.serve.served import Served\n"
        f"Served(Endpoint('g', (Function('g', 'model', {str(reference.path)!r}),)))\n"
        "print([name for name in ('torch', 'numba', 'onnx', 'pydantic', 'sqlalchemy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
