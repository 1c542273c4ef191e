"""Files of prompts, as they are published and as people write them: every form is read, every mistake is named."""

import json

import pytest

from giverny.base.errors import InputError
from giverny.pipelines.prompts import PromptRow, read_prompts

# The first lines of three published files, and one with quotation marks that no table reader may take for its own.
PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n"
    "bond\tAbstract\tBasic\tBiology-inspired concepts with multiple meanings\n"
    "yin-yang\tAbstract\tBasic\tRelated to five elements\n"
    'A robot painted as graffiti on a brick wall. The words "Fly an airplane" are written on the wall.'
    "\tOutdoor Scenes\tComplex\t\n"
    'Dogs playing poker\tAnimals\tImagination\tDescription of "Dogs Playing Poker"\n'
)
COCO = (
    "coco_image_id,caption\n"
    "520,Afternoon at a dock with seagulls flying overhead.\n"
    "827,a zeebra running on a grass feild in a park\n"
)
BIRDS = (
    "species,image,caption\n"
    'Black footed Albatross,Black_Footed_Albatross_0082_796121,"a large bird with an expansive wing span covered in brown '
    'feathers except for the white wing bars, and black and white tail."\n'
    'Black footed Albatross,Black_Footed_Albatross_0039_796132,"this is a large bird, brown in color, with a thick beak."\n'
)


@pytest.fixture
def written(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_parti_prompts_keep_their_categories_and_their_quotation_marks(written):
    for content in (PARTI, PARTI.replace("\n", "\r\n"), b"\xef\xbb\xbf" + PARTI.encode(), PARTI.rstrip("\n")):
        rows = read_prompts(written("parti.tsv", content))
        assert [row.category for row in rows] == ["Abstract", "Abstract", "Outdoor Scenes", "Animals"]
        assert rows[0] == PromptRow("bond", "Abstract")
        assert (
            rows[2].prompt
            == 'A robot painted as graffiti on a brick wall. The words "Fly an airplane" are written on the wall.'
        )
    by_challenge = read_prompts(written("parti.tsv", PARTI), category="challenge")
    assert [row.category for row in by_challenge] == ["Basic", "Basic", "Complex", "Imagination"]


def test_captions_of_published_tables_serve_as_prompts(written):
    coco = read_prompts(written("coco.csv", COCO))
    assert coco == (
        PromptRow("Afternoon at a dock with seagulls flying overhead."),
        PromptRow("a zeebra running on a grass feild in a park"),
    )
    birds = read_prompts(written("birds.csv", BIRDS), category="species")
    assert {row.category for row in birds} == {"Black footed Albatross"}
    assert birds[1].prompt == "this is a large bird, brown in color, with a thick beak."
    assert read_prompts(written("birds.csv", BIRDS), column="image")[0].prompt == "Black_Footed_Albatross_0082_796121"


def test_one_prompt_a_line_and_one_object_a_line(written):
    lines = read_prompts(written("mine.txt", "  a red   dress\n\n\ta blue hat \r\na red dress"))
    assert lines == (PromptRow("a red dress"), PromptRow("a blue hat"), PromptRow("a red dress"))
    told = [
        {"prompt": "a cat", "category": "animals"},
        {"category": None, "text": "no", "prompt": "a hat"},
        {"prompt": "a bus"},
    ]
    rows = read_prompts(written("mine.jsonl", "\n".join(map(json.dumps, told)) + "\n"))
    assert rows == (PromptRow("a cat", "animals"), PromptRow("a hat"), PromptRow("a bus"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", "", "one prompt or more"),
        ("blank.txt", "\n \n\t\n", "one prompt or more"),
        ("empty.tsv", "", "one prompt or more"),
        ("blank.tsv", " \n\n", "one prompt or more"),
        ("header.tsv", "Prompt\tCategory\n", "one prompt or more"),
        ("empty.csv", "", "one prompt or more"),
        ("empty.jsonl", "\n", "one prompt or more"),
        ("latin.txt", "caf\xe9\n".encode("latin-1"), "UTF-8 text.*byte 3"),
        ("wide.csv", COCO.encode("utf-16"), "UTF-8 text"),
        ("other.csv", "sentence,kind\na cat,animals\n", "a column prompt or caption or text.*sentence, kind"),
        ("other.jsonl", '{"words": "a cat"}\n', "a column prompt.*words"),
        ("torn.jsonl", '{"prompt": "a cat"}\n{"prompt": \n', "one JSON object a line.*line 2"),
        ("number.jsonl", '{"prompt": 7}\n', "text in the columns.*row 1"),
        ("hole.tsv", PARTI.replace("yin-yang", " "), "a prompt in every row.*row 2"),
        ("tabs.tsv", "Prompt\tCategory\na cat\tanimals\twith a tab\n", "2 cells a row.*3 in row 1"),
        ("quote.csv", 'prompt\n"a cat\n', "quotation marks"),
        ("prompts.xlsx", PARTI, "ending of a file of prompts"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(written, name, content, said):
    with pytest.raises(InputError, match=said):
        read_prompts(written(name, content))


def test_a_missing_file_and_a_missing_column_are_named(written, tmp_path):
    with pytest.raises(InputError, match="no-such"):
        read_prompts(tmp_path / "no-such.txt")
    with pytest.raises(InputError, match=r"a column Kind in .*Prompt, Category"):
        read_prompts(written("parti.tsv", PARTI), category="Kind")
    with pytest.raises(InputError, match=r"a column Words in .*Prompt, Category"):
        read_prompts(written("parti.tsv", PARTI), column="Words")
    with pytest.raises(InputError, match="a table, to choose columns of"):
        read_prompts(written("mine.txt", "a cat\n"), column="prompt")
